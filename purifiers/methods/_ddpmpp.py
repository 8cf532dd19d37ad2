"""DDPM++ of score_sde (Song et al. 2021): a U-Net that predicts the noise in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = 10_000.0
"""Longest wavelength of the time embedding, over 2 pi (score_sde, ``max_positions``)."""
NEARLY_ZERO = 1e-10
"""Scale of the initial weights of each branch's last layer (score_sde, ``init_scale`` 0)."""
HALVED = math.sqrt(0.5)
"""Factor on the sum of both branches of a block, which keeps its variance (``skip_rescale``)."""


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Ddpmpp(nn.Module):
    """Noise in images at a time, by the network `cifar10_ddpmpp_deep_continuous`.

    All of it is that of `yang-song/score_sde_pytorch` (``configs/vp``, ``models/ncsnpp.py``):
    residual blocks of BigGAN type that also change the resolution, by averages and by repetition;
    group normalisation, SiLU; a positional embedding of the time, added to each block's features.
    106,632,579 parameters by default in colour.

    Sides that ``2 ** (len(multipliers) - 1)`` does not divide are padded with zeros, as
    convolutions pad, and the output is cropped (our choice): 28x28 is computed as 32x32.

    Args:
        channels: of the images.
        side: height of the images, which decides where attention is.
        width: channels of the first level, a multiple of 4.
        blocks: residual blocks per level on the way down; one more on the way up.
        multipliers: channels of each level over ``width``. Each level halves the sides.
        attention: side of the feature maps with self-attention; the smallest ones always have it.
        dropout: in each residual block.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        width: int = 128,
        blocks: int = 8,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        attention: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.width = width
        self.multiple = 2 ** (len(multipliers) - 1)
        side += -side % self.multiple
        self.embedding = nn.Sequential(
            _started(nn.Linear(width, 4 * width)),
            nn.SiLU(),
            _started(nn.Linear(4 * width, 4 * width)),
            nn.SiLU(),
        )
        self.stem = _convolution(channels, width)
        self.down = nn.ModuleList()
        skips, inputs = [width], width
        for level, multiplier in enumerate(multipliers):
            attends = side >> level == attention
            for _ in range(blocks):
                self.down.append(_Stage(inputs, width * multiplier, dropout, attends))
                inputs = width * multiplier
                skips.append(inputs)
            if level < len(multipliers) - 1:
                self.down.append(_Stage(inputs, inputs, dropout, resample="down"))
                skips.append(inputs)
        self.middle = nn.ModuleList(
            [_Stage(inputs, inputs, dropout, attends=True), _Stage(inputs, inputs, dropout)]
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                attends = side >> level == attention and block == blocks
                outputs = width * multiplier
                self.up.append(_Stage(inputs + skips.pop(), outputs, dropout, attends, joins=True))
                inputs = outputs
            if level:
                self.up.append(_Stage(inputs, inputs, dropout, resample="up"))
        self.norm = _norm(inputs)
        self.output = _convolution(inputs, channels, scale=NEARLY_ZERO)
        stages = [*self.down, *self.middle, *self.up]
        self.sizes = [stage.block.first.out_channels for stage in stages]
        # the blocks' layers for the time in one: one product instead of some seventy
        self.shifts = nn.Linear(4 * width, sum(self.sizes))
        for weight in self.shifts.weight.split(self.sizes):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.shifts.bias)

    def shift(self, times: Tensor) -> Tensor:
        """What each block adds to its features at ``times`` (m,) in [0, 1], (m, all channels)."""
        half = self.width // 2
        exponents = torch.arange(half, device=times.device) / (half - 1)
        angles = 999.0 * times[:, None] * POSITIONS**-exponents
        shifts: Tensor = self.shifts(self.embedding(torch.cat([angles.sin(), angles.cos()], dim=1)))
        return shifts

    def forward(self, images: Tensor, shift: Tensor) -> Tensor:
        """Predicted standard normal noise, (n, C, H, W).

        Args:
            images: noisy images, (n, C, H, W).
            shift: of :meth:`shift`, for one time or for one per image.
        """
        height, width = images.shape[-2:]
        rows, columns = -height % self.multiple, -width % self.multiple
        top, left = rows // 2, columns // 2
        if rows or columns:
            images = functional.pad(images, (left, columns - left, top, rows - top))
        shifts = iter(shift[:, :, None, None].split(self.sizes, dim=1))
        hidden = self.stem(images)
        skips = [hidden]
        for stage in self.down:
            hidden = stage(hidden, next(shifts))
            skips.append(hidden)
        for stage in self.middle:
            hidden = stage(hidden, next(shifts))
        for stage in self.up:
            if stage.joins:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = stage(hidden, next(shifts))
        noise: Tensor = self.output(_activated(self.norm(hidden)))
        return noise[..., top : top + height, left : left + width]


class _Stage(nn.Module):
    """A residual block, and self-attention if ``attends``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dropout: float,
        attends: bool = False,
        resample: str = "",
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.joins = joins
        self.block = _Block(inputs, outputs, dropout, resample)
        self.attention = _Attention(outputs) if attends else None

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        hidden = self.block(hidden, shift)
        return hidden if self.attention is None else self.attention(hidden)


class _Block(nn.Module):
    """(x + f(x)) / sqrt(2), with both branches resampled by 2 if asked."""

    def __init__(self, inputs: int, outputs: int, dropout: float, resample: str) -> None:
        super().__init__()
        self.resample = resample
        self.first_norm = _norm(inputs)
        self.first = _convolution(inputs, outputs)
        self.second_norm = _norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = _convolution(outputs, outputs, scale=NEARLY_ZERO)
        changes = inputs != outputs or resample
        self.shortcut = _convolution(inputs, outputs, side=1) if changes else None

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        branch = _activated(self.first_norm(hidden))
        if self.resample == "down":
            branch, hidden = functional.avg_pool2d(branch, 2), functional.avg_pool2d(hidden, 2)
        if self.shortcut is not None:
            hidden = self.shortcut(hidden)
        if self.resample == "up":  # after the shortcut, which gives the same at a quarter the cost
            branch, hidden = _doubled(branch), _doubled(hidden)
        branch = _activated(self.second_norm(self.first(branch).add_(shift)))
        branch = self.second(self.dropout(branch))
        return (hidden + branch).mul_(HALVED)


class _Attention(nn.Module):
    """(x + f(x)) / sqrt(2), where f is self-attention between all pixels with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.projections = nn.Conv2d(channels, 3 * channels, 1)
        for weight in self.projections.weight.chunk(3):
            nn.init.xavier_uniform_(weight, math.sqrt(0.1))  # score_sde's ``NIN``
        _zero_bias(self.projections)
        self.output = _convolution(channels, channels, side=1, scale=NEARLY_ZERO)

    def forward(self, hidden: Tensor) -> Tensor:
        pixels = self.projections(self.norm(hidden)).flatten(2).transpose(1, 2).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(*pixels.chunk(3, dim=-1))
        branch = self.output(mixed.squeeze(1).transpose(1, 2).reshape(hidden.shape))
        return (hidden + branch).mul_(HALVED)


def _activated(normed: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else reads, in place where no gradient needs it."""
    return functional.silu(normed, inplace=not torch.is_grad_enabled())


def _doubled(hidden: Tensor) -> Tensor:
    return functional.interpolate(hidden, scale_factor=2, mode="nearest")


def _norm(channels: int) -> nn.GroupNorm:
    """min(channels / 4, 32) groups, or the next fewer that divide the channels."""
    groups = next(g for g in range(min(channels // 4, 32), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _convolution(inputs: int, outputs: int, side: int = 3, scale: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2)
    return _started(layer, scale)


def _started(layer: Layer, scale: float = 1.0) -> Layer:
    """The layer with DDPM's initial weights: uniform, of variance ``scale`` over the mean fan."""
    nn.init.xavier_uniform_(layer.weight, math.sqrt(scale))
    _zero_bias(layer)
    return layer


def _zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
