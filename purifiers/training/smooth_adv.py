"""SmoothAdv (Salman et al. 2019): adversarial training of smoothed classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.attacks._l2 import direction
from purifiers.core.component import Classifier
from purifiers.core.finite import checked_at_end
from purifiers.core.modes import attack_mode
from purifiers.core.noise import keys_on, normal_on
from purifiers.core.numbers import Radius
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Whole
from purifiers.core.target import input_gradient
from purifiers.training._base import Training

SMALLEST_PROBABILITY = 1e-20
"""Lower bound of a probability before its logarithm (`Hadisalman/smoothing-adversarial`)."""


class SmoothAdv(Training):
    """Cross entropy on x' + sigma z_k, with x' from PGD on the smoothed classifier.

    PGD takes L2 steps of 2 radius / steps along the gradient of -log mean_k softmax(f(x' + sigma
    z_k))_y (Salman et al., equation (S)), in evaluation mode and from the image. The draws z_k are
    the same in every step and in the loss, which is the mean over all of them. The noisy images
    are not clipped, x' is.

    Defaults are those of the command in `Hadisalman/smoothing-adversarial` for CIFAR-10 and
    ResNet-110: 150 epochs, SGD .1 with momentum .9 and weight decay 1e-4, a tenth of the rate after
    50 and 100 epochs. Its batches of 256 are 128 images with 2 draws each. Its images are cropped
    and flipped (``augmentation: crop_flip``). It moves an image without a gradient at random; here
    the image stays.

    Args:
        sigma: standard deviation of the noise on the [0, 1] scale.
        radius: of the L2 ball, over all pixels on that scale; 64/256 upstream.
        steps: of PGD.
        samples: noise draws per image, m in the paper.
        warm_up: epochs over which the radius grows to its full length: it is (epoch + 1) / warm_up
            of it, with epochs counted from 0. 0: it is full at once.
        common: see :class:`purifiers.training._base.Training`; ``batch_size`` counts images, not
            draws.
    """

    traits = Training.traits.replace(
        version=1,
        budget=(
            "epochs",
            "steps",
            "warm_up",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
        joined_later=(),
        passes="3 * epochs * samples * (steps + 1)",
    )

    def __init__(
        self,
        *,
        sigma: NonNegative = 0.12,
        radius: Radius = "64/256",
        steps: Count = 10,
        samples: Count = 2,
        warm_up: Whole = 10,
        epochs: Positive = 150,
        weight_decay: NonNegative = 1e-4,
        milestones: Sequence[Fraction] = (0.3333333333333333, 0.6666666666666666),
        **common: Any,
    ) -> None:
        super().__init__(epochs=epochs, weight_decay=weight_decay, milestones=milestones, **common)
        self.sigma, self.radius, self.steps, self.samples = sigma, radius, steps, samples
        self.warm_up = warm_up
        self._share = 1.0

    def starts(self, epoch: int) -> None:
        self._share = min(1.0, (epoch + 1) / self.warm_up) if self.warm_up else 1.0

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        keys = keys_on(seed, indices.to(images.device), "smooth_adv")
        noise = self.sigma * normal_on(keys, (self.samples, *images.shape[1:]))
        adversarial = self.adversarial(classifier, images, labels, indices, noise)
        noisy = (adversarial.unsqueeze(1) + noise).flatten(0, 1)
        return functional.cross_entropy(classifier(noisy), labels.repeat_interleave(self.samples))

    def adversarial(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, noise: Tensor
    ) -> Tensor:
        """Adversarial examples of the smoothed classifier, float32 (n, C, H, W) in [0, 1].

        Args:
            noise: added to the images, (n, samples, C, H, W).
        """
        radius = self.radius * self._share

        def smoothed(inputs: Tensor, _: Tensor) -> Tensor:
            logits = classifier((inputs.unsqueeze(1) + noise).flatten(0, 1))
            return mean_log_probabilities(logits.view(len(inputs), self.samples, -1))

        adversarial = images
        with attack_mode(classifier, "eval"), checked_at_end(images.device):
            for _ in range(self.steps):
                gradient, _, _ = input_gradient(
                    smoothed, adversarial, labels, indices, negative_log_probability
                )
                moved = adversarial + 2.0 * radius / self.steps * direction(gradient)
                shift = moved.clamp(0.0, 1.0) - images
                length = shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                adversarial = images + shift * (radius / length.clamp_min(radius))
        return adversarial


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Logarithm of the mean softmax over draws, (n, classes).

    Args:
        logits: (n, draws, classes).
    """
    return torch.log(functional.softmax(logits, dim=2).mean(1).clamp_min(SMALLEST_PROBABILITY))


def negative_log_probability(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """-log p_y per image, (n,)."""
    return -log_probabilities.gather(1, labels[:, None]).squeeze(1)
