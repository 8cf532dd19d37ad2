"""AugMix (Hendrycks et al. 2020): consistent predictions on augmented copies of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core import augmix
from purifiers.core.choices import Optimizer, Schedule
from purifiers.core.component import Classifier
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.training._base import Training

SMALLEST_PROBABILITY = 1e-7
"""Lower bound of the mean prediction before its logarithm (`google-research/augmix`)."""


class Augmix(Training):
    """CE(f(x), y) + lambda JS(f(x), f(x1), f(x2)), with two AugMix copies x1 and x2.

    JS is the Jensen-Shannon divergence of the three predictions (Hendrycks et al., section 3).
    The copies are those of :class:`purifiers.core.augmix.AugMix`, from the step's seed and the
    image's index. They are made of the cropped and flipped image (``augmentation: crop_flip``
    upstream). Images are rounded to 8 bits before they are augmented.

    Defaults are those of `google-research/augmix` for CIFAR-10 and WRN-40-2: 100 epochs (the paper
    trains DenseNet and ResNeXt for 200), batch 128, SGD .1 with Nesterov's momentum .9 and weight
    decay 5e-4, the rate along half a cosine to 1e-6.

    Args:
        consistency: lambda, weight of the divergence.
        severity, width, depth: of the augmentation, see :class:`purifiers.core.augmix.AugMix`;
            ``depth`` null: 1 to 3, drawn for each chain (-1 upstream).
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(version=1, joined_later=(), passes="9 * epochs")

    def __init__(
        self,
        *,
        consistency: NonNegative = 12.0,
        severity: Positive = 3.0,
        width: Count = 3,
        depth: Count | None = None,
        epochs: Positive = 100,
        optimizer: Optimizer = "nesterov",
        weight_decay: NonNegative = 5e-4,
        schedule: Schedule = "cosine",
        min_learning_rate: NonNegative = 1e-6,
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            min_learning_rate=min_learning_rate,
            **common,
        )
        self.consistency = consistency
        self.mixture = augmix.AugMix(severity, width, -1 if depth is None else depth)

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        copies = [self.mixture(images, seed, indices, tag) for tag in ("first", "second")]
        # one batch, so that batch normalisation sees all three
        logits = classifier(torch.cat([images, *copies])).chunk(3)
        divergence = jensen_shannon(*(functional.softmax(part, dim=1) for part in logits))
        return functional.cross_entropy(logits[0], labels) + self.consistency * divergence


def jensen_shannon(*predictions: Tensor) -> Tensor:
    """Mean divergence of predictions (n, classes) from their mean, in nats, a scalar."""
    mean = torch.stack(predictions).mean(0).clamp(SMALLEST_PROBABILITY, 1.0).log()
    divergences = [functional.kl_div(mean, p, reduction="batchmean") for p in predictions]
    return torch.stack(divergences).mean()
