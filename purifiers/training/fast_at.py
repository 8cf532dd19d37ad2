"""Fast adversarial training (Wong et al. 2020): one step from a random start, a cyclic rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from purifiers.core.choices import Schedule
from purifiers.core.component import Classifier
from purifiers.core.numbers import Length
from purifiers.core.ranges import NonNegative, Positive
from purifiers.training._base import Training
from purifiers.training._collapse import fell
from purifiers.training.madry import Madry


class FastAt(Training):
    """Train on one step of 1.25 eps from a uniform start in the ball (Wong et al., algorithm 3).

    It stops when the accuracy under PGD on some training images falls from one epoch to the next
    as by catastrophic overfitting, and keeps the weights before that epoch, as `--early-stop` of
    `locuslab/fast_adversarial`. PGD has 10 steps in evaluation mode here, 5 in training mode there.

    Defaults are those of `locuslab/fast_adversarial` for CIFAR-10.

    Args:
        eps, step_size: of the single step.
        early_end: stop as above; False trains to the end, and only notes the collapse.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(version=1, joined_later=(), passes="6 * epochs")

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "10/255",
        early_end: bool = True,
        epochs: Positive = 15,
        learning_rate: Positive = 0.2,
        weight_decay: NonNegative = 5e-4,
        schedule: Schedule = "cyclic",
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            schedule=schedule,
            **common,
        )
        self.early_end = early_end
        # batch normalisation uses the batch's statistics in the attack, as upstream
        self._single_step = Madry(eps=eps, steps=1, step_size=step_size, attack_mode="train")

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        return self._single_step.loss(classifier, images, labels, indices, seed)

    def watch(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> dict[str, float]:
        """Accuracies under the single step and under PGD."""
        return self._single_step.watch(classifier, images, labels, indices, seed)

    def ends(self, watched: Sequence[dict[str, float]]) -> bool:
        return self.early_end and fell(watched)

    def note(self, watched: Sequence[dict[str, float]]) -> str:
        if not self.ends(watched):
            return self._single_step.note(watched)
        before, after = (100 * values["pgd"] for values in watched[-2:])
        return (
            f"catastrophic overfitting: accuracy on training images under PGD fell from "
            f"{before:.0f} % to {after:.0f} % in epoch {len(watched)}; the training ended with the "
            "weights before it"
        )
