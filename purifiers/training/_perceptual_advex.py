"""Adversarial training in evaluation mode, with the schedule of Laidlaw, Singla & Feizi (2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Attack, Classifier
from purifiers.core.modes import attack_mode
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share
from purifiers.training._base import Training


class PerceptualAdvex(Training):
    """Cross entropy on the examples of one attack, made in evaluation mode.

    Defaults are those of `cassidylaidlaw/perceptual-advex`, ``adv_train.py`` for CIFAR-10: 100
    epochs of SGD at .1, momentum .9, weight decay 2e-4, divided by 10 after epochs 75 and 90;
    5 epochs of warm-up; each entry of a gradient clipped to [-1, 1]. Its images are cropped,
    flipped, and also rotated by up to 2 degrees with other colours (`MadryLab/robustness`);
    ``crop_flip`` is the nearest here.

    A subclass sets ``attack``.

    Args:
        only_correct: attack only images that the network classifies correctly; the others stay
            clean (``--only_attack_correct``).
        warm_up: fraction of the training in which the rate rises (schedule ``step`` only).
        clip_value: see :class:`purifiers.core.recipe.Recipe`; 0: no clipping.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(
        version=0,
        joined_later=(),
        budget=(
            "epochs",
            "batch_size",
            "steps",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
    )
    attack: Attack

    def __init__(
        self,
        *,
        only_correct: bool = False,
        epochs: Positive = 100,
        batch_size: Count = 100,
        milestones: Sequence[Fraction] = (0.75, 0.9),
        warm_up: Share = 0.05,
        clip_value: NonNegative = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(epochs=epochs, batch_size=batch_size, milestones=milestones, **common)
        self.recipe = replace(self.recipe, warm_up=warm_up, clip_value=clip_value)
        self.only_correct = only_correct

    def adversarial(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        """Examples of the attack, float32 (n, C, H, W) in [0, 1]."""
        return self.examples(self.attack, classifier, images, labels, indices, seed)

    def examples(
        self,
        attack: Attack,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        seed: int,
    ) -> Tensor:
        """Examples of ``attack``, float32 (n, C, H, W) in [0, 1]."""
        with attack_mode(classifier, "eval"):
            if not self.only_correct:
                return attack(classifier, images, labels, seed, indices)
            with torch.no_grad():
                correct = classifier(images).argmax(dim=1) == labels
            rows = correct.nonzero().squeeze(1)
            result = images.clone()
            result[rows] = attack(
                classifier, images[rows], labels[rows], seed, indices[rows.to(indices.device)]
            )
            return result

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        adversarial = self.adversarial(classifier, images, labels, indices, seed)
        return functional.cross_entropy(classifier(adversarial), labels)
