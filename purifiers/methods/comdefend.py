"""ComDefend (Jia et al. 2019): compress the image to a binary code, and reconstruct it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.choices import Schedule
from purifiers.core.component import Method, default_indices
from purifiers.core.noise import generator, normal
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, MethodTraits, Network, Rule

# Output channels of the convolutions over the width, 32 (`jiaxiaojunQAQ/Comdefend`).
COMPRESSION = (1 / 2, 1, 2, 4, 8, 4, 2, 1)
RECONSTRUCTION = (1, 2, 4, 8, 4, 2, 1, 1 / 2)


class Comdefend(Method):
    """x -> R(round(sigmoid(C(x)))): nine convolutions to a code of bits, nine back to an image.

    1,566,735 parameters in colour. In training the code is sigmoid(C(x) - noise), with so much
    noise that only bits survive; the loss is MSE(R(code), x) + ``code_weight`` mean(code^2). The
    classifier is not used. Convolutions are 3x3 with zero padding, ELU in between, a sigmoid at the
    end; the image minus 0.5 is compressed. All this is from `jiaxiaojunQAQ/Comdefend`. Initial
    weights are He's (our choice): PyTorch's own let the signal vanish in 18 layers.

    Rounding has no gradient. The gradient of :meth:`purify` is that of the code before rounding
    (straight-through).

    Args:
        sigma: standard deviation of the noise in training; 20 upstream.
        test_sigma: noise on the code at test time: 0, our choice, or 1, upstream's, which makes the
            method random.
        code_weight: 1e-4 upstream.
        width: channels of the second convolution; 32 upstream.
        code: channels of the code; 12 upstream. It has as many pixels as the image.
        epochs, batch_size, learning_rate: of Adam. Our choice; upstream has 1 epoch and batch 20.
        schedule: of the rate, see :class:`purifiers.core.recipe.Recipe`.

    Raises:
        UserError: a ``test_sigma`` other than 0 and 1, or an odd width.
    """

    traits = MethodTraits(
        version=1,
        budget=("width", "epochs", "batch_size", "learning_rate", "schedule"),
        random={"test_sigma": (1,)},
        fit=Fit(uses_classifier=False, inference_only=("test_sigma",)),
        network=Network(sized_by=("width", "code"), passes="1", fit_passes="3 * epochs"),
        rules=(Rule(holds="width % 2 == 0", text="width is {width}: choose an even number"),),
    )

    def __init__(
        self,
        *,
        sigma: NonNegative = 20.0,
        test_sigma: Literal[0, 1] = 0,
        code_weight: NonNegative = 1e-4,
        width: Count = 32,
        code: Count = 12,
        epochs: Positive = 10,
        batch_size: Count = 128,
        learning_rate: Positive = 0.001,
        schedule: Schedule = "step",
    ) -> None:
        super().__init__()
        self.sigma, self.test_sigma, self.code_weight = sigma, test_sigma, code_weight
        self.width, self.code = width, code
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
            schedule=schedule,
        )

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build both networks for the images' channels; the classifier is not used."""
        channels = shape[0]
        inner = [int(factor * self.width) for factor in COMPRESSION]
        self.compression = _convolutions([channels, *inner, self.code])
        inner = [int(factor * self.width) for factor in RECONSTRUCTION]
        self.reconstruction = _convolutions([self.code, *inner, channels])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """MSE of the reconstruction plus ``code_weight`` times the mean squared code."""
        linear = self._linear(images)
        noise = torch.randn(linear.shape, generator=generator(seed, "comdefend"))
        code = torch.sigmoid(linear - self.sigma * noise.to(linear.device))
        error = functional.mse_loss(self._reconstructed(code), images)
        return error + self.code_weight * code.square().mean()

    def own_pass(self, images: Tensor) -> Tensor:
        return self._reconstructed(torch.sigmoid(self._linear(images)))

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Reconstructions from bits; differentiable by the straight-through estimate."""
        linear = self._linear(images)
        if self.test_sigma:
            rows = default_indices(images, indices)
            noise = normal(seed, rows, linear.shape[1:], "comdefend")
            linear = linear - self.test_sigma * noise.to(linear.device)
        soft = torch.sigmoid(linear)
        bits = (soft > 0.5).to(soft.dtype)
        return self._reconstructed(_StraightThrough.apply(soft, bits))

    def _linear(self, images: Tensor) -> Tensor:
        """The code before noise and sigmoid, float32 (n, ``code``, H, W)."""
        return self.compression(images - 0.5)

    def _reconstructed(self, code: Tensor) -> Tensor:
        return torch.sigmoid(self.reconstruction(code))


class _StraightThrough(torch.autograd.Function):
    """Forward: the bits. Backward: the gradient of the code before rounding."""

    @staticmethod
    def forward(ctx: object, soft: Tensor, bits: Tensor) -> Tensor:
        return bits

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _convolutions(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ELU()]
    return nn.Sequential(*layers[:-1])
