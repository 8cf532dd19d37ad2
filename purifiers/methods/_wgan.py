"""Generator and critic of Defense-GAN, and their losses: WGAN-GP (Gulrajani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

KERNEL = 5
SLOPE = 0.2
SMALLEST = 4
"""Height of the generator's first map (`kabkabm/defensegan`, as all sizes here)."""
MOST_CONVOLUTIONS = 3
"""Largest number of convolutions in the critic, for images of any size."""


class Generator(nn.Module):
    """Map latent codes (n, latent) to pixels (n, C, H, W), in [0, 1] if C is 1, else in [-1, 1].

    A linear layer, then deconvolutions 5x5 of stride 2, from 4x4 up. 28x28 is reached through 7x7,
    cropped from 8x8 (upstream: ``[:7]``). 64x64 has no ReLU between its last two deconvolutions.
    No normalisation. Upstream has networks for 28x28 (1,554,177 parameters) and 64x64; other sizes
    continue their pattern.

    Padding and crop are TensorFlow's, mirrored: the odd row is above, not below.

    Args:
        shape: (C, H, W), square.
        latent: length of a code.
        width: channels of the deconvolutions after the second.
    """

    def __init__(self, shape: Sequence[int], latent: int, width: int) -> None:
        super().__init__()
        sizes = _sizes(shape)[::-1]
        channels = [4 * width, 2 * width, *[width] * len(sizes)][: len(sizes) - 1]
        self.first = (channels[0], sizes[0], sizes[0])
        self.dense = nn.Linear(latent, math.prod(self.first))
        self.layers = nn.ModuleList(
            _Deconvolution(inputs, outputs) for inputs, outputs in pairwise([*channels, shape[0]])
        )
        self.sizes = sizes[1:]
        self.last = torch.sigmoid if shape[0] == 1 else torch.tanh
        _initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = functional.relu(self.dense(latent)).unflatten(1, self.first)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for position, (layer, size) in enumerate(zip(self.layers, self.sizes, strict=True)):
            hidden = layer(hidden)[..., -size:, -size:]
            if position < min(2, len(self.layers) - 1):
                hidden = functional.relu(hidden)
        return self.last(hidden)


class Critic(nn.Module):
    """Score pixels (n, C, H, W) with (n,), high for real ones.

    At most three convolutions 5x5 of stride 2 with LeakyReLU(.2), then a linear layer over the
    whole map. Upstream's reshape cuts the 8x8 map of 64x64 images into four strips, which the same
    weights score; here the map is scored as a whole.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        sizes = _sizes(shape)[: MOST_CONVOLUTIONS + 1]
        channels = [shape[0], *(width * 2**position for position in range(len(sizes) - 1))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, KERNEL, 2, 2), nn.LeakyReLU(SLOPE)]
        last = nn.Linear(channels[-1] * sizes[-1] ** 2, 1)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)
        _initialise(self)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).squeeze(1)


def critic_loss(
    critic: nn.Module, real: Tensor, generated: Tensor, share: Tensor, penalty: float
) -> Tensor:
    """Difference of the mean scores plus the gradient penalty.

    Gulrajani et al. 2017, Algorithm 1, lines 5 to 7.

    Args:
        real, generated: pixels (n, C, H, W) without gradients.
        share: weight of the generated pixels in the points of the gradient penalty, (n, 1, 1, 1).
        penalty: weight of the gradient penalty.
    """
    scores = critic(torch.cat([generated, real]))
    difference = scores[: len(generated)].mean() - scores[len(generated) :].mean()
    return difference + penalty * gradient_penalty(critic, real + share * (generated - real))


def gradient_penalty(critic: nn.Module, points: Tensor) -> Tensor:
    """Mean over the points of (norm of the critic's gradient - 1)^2.

    The norm is over the whole image. Upstream sums over the axis of the rows only.
    """
    points = points.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1.0).square().mean()


def generator_loss(critic: nn.Module, generated: Tensor) -> Tensor:
    """Negative mean score, without gradients for the critic's weights."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    return -functional_call(critic, weights, (generated,)).mean()


class _Deconvolution(nn.ConvTranspose2d):
    """A deconvolution 5x5 of stride 2, computed as a convolution for few output channels.

    A deconvolution that doubles the image equals a convolution with four 3x3 kernels, one per pixel
    of each 2x2 block. The sums are the same in another order; for one channel it takes a quarter of
    the time on a processor.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, KERNEL, stride=2, padding=2, output_padding=1)

    def forward(self, hidden: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.out_channels > 4:
            return super().forward(hidden, output_size)
        # tap 2 a + r of a row belongs to the pixels of phase r, at offset 1 - a
        taps = functional.pad(self.weight, (0, 1, 0, 1)).unflatten(3, (3, 2)).unflatten(2, (3, 2))
        kernels = taps.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
        assert self.bias is not None
        bias = self.bias.repeat_interleave(4)
        return functional.pixel_shuffle(functional.conv2d(hidden, kernels, bias, padding=1), 2)


def _sizes(shape: Sequence[int]) -> list[int]:
    """Heights from that of the images down to 4, each half of the one before, rounded up."""
    sizes = [shape[1]]
    while sizes[-1] > SMALLEST:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _initialise(module: nn.Module) -> None:
    """Draw upstream's uniform weights, scaled by the mean of fan-in and fan-out; set biases to 0.

    The variance is Glorot's for linear layers and He's for the others. At stride 2 a quarter of the
    taps reaches a pixel of the larger map.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            variance = 2.0 / sum(layer.weight.shape)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            at_smaller, at_larger = layer.weight.shape[:2]
            variance = 4.0 / (KERNEL**2 * (at_smaller / 4 + at_larger))
        else:
            continue
        nn.init.uniform_(layer.weight, -math.sqrt(3.0 * variance), math.sqrt(3.0 * variance))
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
