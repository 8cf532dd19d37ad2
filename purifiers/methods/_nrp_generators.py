"""Generators of NRP (Naseer et al. 2020), as published in `Muzammal-Naseer/NRP`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

RESG_SLOPE = 0.1
RRDB_SLOPE = 0.2
"""Slopes of LeakyReLU in resG and in RRDB."""
RESIDUAL_SCALE = 0.2
"""Factor on the output of a dense block, and of three of them, before the input is added."""
BLOCK_SCALE = 0.1
"""Factor on the initial weights of resG's blocks, so that they begin near the identity."""


class ResG(nn.Sequential):
    """Convolution, LeakyReLU, ``blocks`` residual blocks, convolution; all 3x3 with stride 1.

    With 3 channels, width 64 and 23 blocks 1,702,211 parameters (upstream's README rounds to 1.2
    million). No normalisation and no skip from the input; the output is unbounded.

    Args:
        channels: C of the images (n, C, H, W), of any height and width.
        width: channels of the inner layers.
        blocks: number of residual blocks.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__(
            _convolution(channels, width),
            nn.LeakyReLU(RESG_SLOPE),
            *(_ResidualBlock(width) for _ in range(blocks)),
            _convolution(width, channels),
        )


class Rrdb(nn.Sequential):
    """Convolution, ``blocks`` residual-in-residual dense blocks, convolution.

    ESRGAN's trunk (Wang et al. 2018) without its skip. With 3 channels, width 64 and 23 blocks
    16,550,275 parameters (README: around 14 million).

    Args:
        channels, width, blocks: as in :class:`ResG`. A dense block grows by ``width / 2`` channels
            per convolution: 32 at width 64.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__(
            _convolution(channels, width),
            *(_DenseBlocks(width, width // 2) for _ in range(blocks)),
            _convolution(width, channels),
        )


GENERATORS: dict[str, type[ResG] | type[Rrdb]] = {"resg": ResG, "rrdb": Rrdb}
"""Values of the parameter ``generator`` and their networks."""


class _ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))); weights He normal over fan-in times .1, biases 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolution(width, width), _convolution(width, width)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= BLOCK_SCALE
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv2(functional.relu(self.conv1(hidden)))


class _DenseBlock(nn.Module):
    """x + .2 times the last of five convolutions; each gets x and all outputs before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.growing = nn.ModuleList(
            _convolution(width + position * growth, growth) for position in range(4)
        )
        self.last = _convolution(width + 4 * growth, width)

    def forward(self, hidden: Tensor) -> Tensor:
        features = hidden
        for layer in self.growing:
            features = torch.cat(
                [features, functional.leaky_relu(layer(features), RRDB_SLOPE)], dim=1
            )
        return hidden + RESIDUAL_SCALE * self.last(features)


class _DenseBlocks(nn.Module):
    """x + .2 times three dense blocks in a row."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_DenseBlock(width, growth) for _ in range(3)))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + RESIDUAL_SCALE * self.blocks(hidden)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
