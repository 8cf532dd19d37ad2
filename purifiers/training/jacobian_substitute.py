"""Substitute training (Papernot et al. 2017): fit a model to the labels of an attacked model."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from purifiers.core.component import Classifier
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, Whole
from purifiers.core.target import input_gradient
from purifiers.training.plateau import Plateau


class JacobianSubstitute(Plateau):
    """Cross entropy on hard labels of the attacked model, with Jacobian-based data augmentation.

    Papernot et al. 2017, arXiv 1602.02697, algorithm 1. A few seed images are labelled, and the
    substitute is trained on them. Every image is then moved along the substitute's gradient and
    labelled by the attacked model, which doubles the set. The same substitute is trained further,
    with a fresh optimizer. 150 images become 4,800 in 6 rounds.

    This follows `lihebi/AdvAE`, which has it from `cleverhans-lab/cleverhans`
    (``mnist_blackbox.py``), without the reservoir sampling of the authors' arXiv 1605.07277. Both
    repositories let moved images leave [0, 1]; here they are clipped, because a defence takes
    images.

    Args:
        seed_images: 150 held-out test images, `lihebi/AdvAE` and the AdvAE paper, section 4.1.
        rounds: number of trainings, with an augmentation between consecutive ones; 6, likewise.
        augmentation_step: L-infinity length of a move; .1 in both repositories.
        negative_rounds: the moves after the first 3 trainings go against the gradient, later ones
            along it, in both repositories. (The sign of arXiv 1605.07277 changes periodically.)
        seed_labels: ``dataset``: true labels of the seed images, as in both repositories;
            ``oracle``: labels by the attacked model, as in algorithm 1.

    Each round uses the recipe of the clean classifiers, as in `lihebi/AdvAE`.

    Raises:
        UserError: no seed image, no round, or an unknown source of the seed images' labels.
    """

    traits = Plateau.traits.replace(
        version=1,
        budget=(
            "epochs",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
            "seed_images",
            "rounds",
        ),
        passes="3 * epochs",  # per image and round
        uses_oracle=True,  # trained on labels of the attacked defence, by the stage `substitute`
    )

    def __init__(
        self,
        *,
        seed_images: Count = 150,
        rounds: Count = 6,
        augmentation_step: Length = 0.1,
        negative_rounds: Whole = 3,
        seed_labels: Literal["dataset", "oracle"] = "dataset",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.seed_images, self.rounds = seed_images, rounds
        self.augmentation_step = augmentation_step
        self.negative_rounds = negative_rounds
        self.seed_labels = seed_labels

    def augment(
        self, classifier: Classifier, images: Tensor, labels: Tensor, trained: int
    ) -> Tensor:
        """Move each image to x + lambda sign(dF_y(x) / dx), clipped to [0, 1].

        Args:
            classifier: the substitute F, its logits; in evaluation mode.
            images: float32 (n, C, H, W) in [0, 1].
            labels: y of each image, int64 (n,).
            trained: number of finished trainings of the substitute, at least 1; it determines
                lambda's sign.

        Returns:
            float32 (n, C, H, W).
        """
        gradient, _, _ = input_gradient(
            lambda inputs, _: classifier(inputs), images, labels, labels, _logit_of_label
        )
        sign = -1.0 if trained <= self.negative_rounds else 1.0
        return (images + sign * self.augmentation_step * gradient.sign()).clamp(0.0, 1.0)


def _logit_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)
