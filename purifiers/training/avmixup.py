"""Adversarial vertex mixup (Lee et al. 2020): soft labels between an image and its vertex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.core.noise import uniform
from purifiers.core.ranges import Fraction, Positive
from purifiers.training.madry import Madry


class Avmixup(Madry):
    """Cross entropy on mixtures of clean images and adversarial vertices (Lee et al. 2020).

    The vertex is ``gamma`` times as far from the image as the PGD example, clipped to [0, 1]. The
    weight of the clean image is Beta(1, 1), that is uniform, per image
    (`Saehyung-Lee/cifar10_challenge`).

    Args:
        gamma: 2.0 upstream.
        lambda1: weight of the true class in a clean image's label; 1.0 upstream for CIFAR-10.
        lambda2: weight of the true class in a vertex's label; 0.1 upstream for CIFAR-10.
        common: see :class:`purifiers.training.madry.Madry`.
    """

    traits = Madry.traits.replace(version=1)

    def __init__(
        self,
        *,
        gamma: Positive = 2.0,
        lambda1: Fraction = 1.0,
        lambda2: Fraction = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.gamma, self.lambda1, self.lambda2 = gamma, lambda1, lambda2

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        adversarial = self.adversarial(classifier, images, labels, indices, seed)
        clean_share = uniform(seed, indices, (1,), tag="avmixup").to(images.device)
        mixed, soft = self.mix(images, adversarial, labels, clean_share, classifier.classes)
        return functional.cross_entropy(classifier(mixed), soft)

    def mix(
        self,
        images: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        clean_share: Tensor,
        classes: int,
    ) -> tuple[Tensor, Tensor]:
        """Mixed images (n, C, H, W) and soft labels (n, classes).

        Args:
            clean_share: weight of the clean images, (n, 1).
        """
        vertex = (images + self.gamma * (adversarial - images)).clamp(0.0, 1.0)
        share = clean_share[:, :, None, None]
        mixed = share * images + (1.0 - share) * vertex
        clean_label = smooth_label(labels, classes, self.lambda1)
        vertex_label = smooth_label(labels, classes, self.lambda2)
        return mixed, clean_share * clean_label + (1.0 - clean_share) * vertex_label


def smooth_label(labels: Tensor, classes: int, weight: float) -> Tensor:
    """Put ``weight`` on the true class and spread the rest evenly over the others; (n, classes)."""
    others = (1.0 - weight) / (classes - 1)
    hot = functional.one_hot(labels, classes).to(torch.float32)
    return hot * weight + (1.0 - hot) * others
