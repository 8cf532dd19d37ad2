"""MagNet (Meng & Chen 2017): auto-encoders that reform images and detect adversarial ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.logits import queried
from purifiers.core.noise import generator
from purifiers.core.ranges import Count, Interior, NonNegative, Positive, Share
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, MethodTraits, Network
from purifiers.methods._autoencoder import Autoencoder
from purifiers.methods._magnet_autoencoder import (
    FlatAutoencoder,
    PooledAutoencoder,
)

SMALLEST = 1e-12
"""Lower bound of a detector's mark, so that its logarithm is finite; our choice."""


class Magnet(Method):
    """x -> AE(x), clipped, with denoising auto-encoders; a large change detects an attack.

    Only the reformer purifies. The detectors are :meth:`detected` and :meth:`detector_logit`.
    Upstream counts an adversarial image as a success if it is detected *or* classified correctly
    after the reformer, and a clean one if it is not detected *and* classified correctly.

    Defaults are those of `Trevillie/MagNet`, which has MNIST only. For CIFAR-10 the paper uses
    ``single_scale`` with temperatures 10 and 40, and ports of it agree on noise .025, 400 epochs
    and drop rate .005.

    Args:
        variant: ``two_scale`` (MNIST): the reformer AE-I pools once; the detectors are its mean
            squared error and the mean absolute error of AE-II. ``single_scale`` (CIFAR-10): AE-II
            is the reformer, and its mean absolute error the detector.
        temperatures: one more detector for each T: the Jensen-Shannon divergence of the
            classifier's softmax(logits / T) of the image and of the reformed image. It needs the
            classifier that MagNet is bound to; the other detectors do not.
        width: channels of all inner layers.
        activation: of the inner layers: ``sigmoid``, or ``relu`` for short trainings (our choice),
            because sigmoids need thousands of steps before the output shows an image.
        noise: standard deviation of the Gaussian noise added in training, then clipped. Drawn anew
            in every step; upstream draws it once per image.
        drop_rate: fraction of the held-out images that each detector drops, in [0, 1).
        validation: fraction of the training images that is held out for the thresholds, in (0, 1);
            our choice, upstream holds out 5,000 of 60,000. Upstream keeps the last weights, here
            those with the lowest held-out error are kept.
        epochs, batch_size, learning_rate: of Adam; the rate is Keras's default.

    Upstream's penalty of 1e-9 on squared activations is omitted.

    Raises:
        UserError: an unknown variant or activation, or a number out of range.
    """

    traits = MethodTraits(
        version=1,
        budget=("width", "activation", "epochs", "batch_size", "learning_rate", "validation"),
        provides=("detector_logit", "detected"),
        fit=Fit(),
        # of the reformer
        network=Network(sized_by=("variant", "width"), passes="1", fit_passes="6 * epochs"),
    )

    thresholds: Tensor

    def __init__(
        self,
        *,
        variant: Literal["two_scale", "single_scale"] = "two_scale",
        temperatures: Sequence[Positive] = (),
        width: Count = 3,
        activation: Literal["sigmoid", "relu"] = "sigmoid",
        noise: NonNegative = 0.1,
        drop_rate: Share = 0.001,
        validation: Interior = 0.1,
        epochs: Positive = 100,
        batch_size: Count = 256,
        learning_rate: Positive = 0.001,
    ) -> None:
        super().__init__()
        self.variant, self.width, self.activation = variant, width, activation
        self.noise, self.drop_rate = noise, drop_rate
        self.temperatures = tuple(temperatures)
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
            validation=validation,
        )
        self._classifier: list[nn.Module] = []  # in a list, so that it is no submodule
        self._held_out: list[Tensor] = []  # marks of the held-out images in this validation

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        if classifier is None and self.temperatures:
            raise UserError("magnet: temperatures need a classifier; bind one or leave them out")
        self._classifier = [] if classifier is None else [classifier]
        self.flat: Autoencoder = FlatAutoencoder(shape[0], self.width, self.activation)
        if self.variant == "two_scale":
            self.pooled: Autoencoder = PooledAutoencoder(shape[0], self.width, self.activation)
        detectors = len(self.temperatures) + len(self._autoencoders())
        # nothing is detected before the thresholds are set
        self.register_buffer("thresholds", torch.full((detectors,), torch.inf))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _autoencoders(self) -> list[Autoencoder]:
        """All auto-encoders, the reformer first."""
        return [self.pooled, self.flat] if self.variant == "two_scale" else [self.flat]

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Sum of the auto-encoders' mean squared errors; each gets gradients of its own error only.

        In evaluation mode the images are held-out ones. They are not noised, and they update the
        thresholds, whose final values are set by the last batch of a validation.
        """
        if not self.training:
            self._held_out.append(self.marks(images).detach())
            self.thresholds.copy_(thresholds(torch.cat(self._held_out), self.drop_rate))
            inputs = images
        else:
            self._held_out.clear()
            draw = generator(seed, "magnet")
            noise = torch.randn(images.shape, generator=draw).to(images.device)
            inputs = (images + self.noise * noise).clamp(0.0, 1.0)
        errors = [functional.mse_loss(net(inputs), images) for net in self._autoencoders()]
        return torch.stack(errors).sum()

    def own_pass(self, images: Tensor) -> Tensor:
        return self._autoencoders()[0](images)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Reformed images; differentiable end to end."""
        return self._autoencoders()[0](images).clamp(0.0, 1.0)

    def marks(self, images: Tensor) -> Tensor:
        """Mark of each image by each detector, (n, detectors), at least 0; high for adversarial.

        The reconstruction errors come first, then one divergence per temperature.
        """
        reformed = self.purify(images)
        change = reformed - images
        if self.variant == "two_scale":
            errors = [change.square(), (self.flat(images) - images).abs()]
        else:
            errors = [change.abs()]
        marks = [error.flatten(1).mean(dim=1) for error in errors]
        if self.temperatures:
            (classifier,) = self._classifier
            pair_of_logits = [queried(classifier, x) for x in (images, reformed)]
            marks += [
                divergence(*(logits / t for logits in pair_of_logits)) for t in self.temperatures
            ]
        return torch.stack(marks, dim=1)

    def detector_logit(self, images: Tensor) -> Tensor:
        """log(mark / threshold) of the detector with the largest ratio, (n,): above 0 if detected.

        The logarithm, and thus a common scale for all detectors, is our choice.
        """
        ratios = self.marks(images).clamp_min(SMALLEST) / self.thresholds.clamp_min(SMALLEST)
        return ratios.log().amax(dim=1)

    def detected(self, images: Tensor) -> Tensor:
        """Whether at least one detector detects the image, bool (n,)."""
        return self.detector_logit(images) > 0.0


def thresholds(marks: Tensor, drop_rate: float) -> Tensor:
    """Threshold of each detector, (detectors,): the largest mark that is not dropped.

    floor(drop_rate n) images are above it, as upstream counts. If that is 0, upstream takes the
    *smallest* mark and drops everything (``marks[-0]``); here nothing is dropped. Upstream's
    threshold is the smallest mark that is dropped; a mark between the two is kept there only.

    Args:
        marks: of the held-out images, (n, detectors).
        drop_rate: fraction of them to drop.
    """
    dropped = int(len(marks) * drop_rate)
    return marks.sort(dim=0).values[len(marks) - 1 - dropped]


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of softmax(first) and softmax(second), in nats, (n,)."""
    one, two = functional.log_softmax(first, dim=1), functional.log_softmax(second, dim=1)
    middle = torch.logaddexp(one, two) - math.log(2.0)
    parts = [(p.exp() * (p - middle)).sum(dim=1) for p in (one, two)]
    return (0.5 * (parts[0] + parts[1])).clamp_min(0.0)
