"""Adversarial training (Madry et al. 2018): cross entropy on PGD examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.attacks.pgd import Pgd
from purifiers.core.choices import Mode, Statistics
from purifiers.core.component import Classifier
from purifiers.core.modes import attack_mode
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.training._base import Training
from purifiers.training._collapse import collapse_note, compared


class Madry(Training):
    """min E max CE: train on the PGD examples of every batch (Madry et al. 2018, eq. 2.1).

    Args:
        eps, steps, step_size: of the inner attack, with a random start; 8/255, 10 x 2/255 in
            `MadryLab/cifar10_challenge`.
        attack_mode: mode of batch normalisation during the attack; ``train`` as upstream.
        statistics: images of the running statistics of batch normalisation: ``adversarial``, or
            ``clean`` as `lihebi/AdvAE`, where adversarial batches use their own statistics only.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(
        version=1,
        budget=(
            "epochs",
            "steps",
            "step_size",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
        joined_later=("decayed", "crop_padding", "precision", "statistics"),
        passes="3 * epochs * (steps + 1)",
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        steps: Count = 10,
        step_size: Length = "2/255",
        attack_mode: Mode = "train",
        statistics: Statistics = "adversarial",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.attack = Pgd(eps=eps, steps=steps, step_size=step_size)
        self.attack_mode, self.statistics = attack_mode, statistics

    def adversarial(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        """PGD examples of the batch, float32 (n, C, H, W) in [0, 1]."""
        with attack_mode(classifier, self.attack_mode):
            # a function, because attacks refuse a module in training mode
            return self.attack(classifier.__call__, images, labels, seed, indices)

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        adversarial = self.adversarial(classifier, images, labels, indices, seed)
        if self.statistics == "clean" and classifier.training:
            with torch.no_grad():
                classifier(images)
            with attack_mode(classifier, "train"):
                return functional.cross_entropy(classifier(adversarial), labels)
        return functional.cross_entropy(classifier(adversarial), labels)

    def watch(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> dict[str, float]:
        """Accuracies that reveal catastrophic overfitting; measured if the attack has one step."""
        if self.attack.steps > 1:
            return {}
        adversarial = self.attack(classifier, images, labels, seed, indices)
        return compared(classifier, adversarial, self.attack.eps, images, labels, indices, seed)

    def note(self, watched: Sequence[dict[str, float]]) -> str:
        return collapse_note(watched)
