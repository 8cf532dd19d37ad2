"""PixelCNN++ (Salimans et al. 2017): a causal network and its distribution of an 8-bit pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.precision import at_least_float32

PER_MIXTURE = {1: 3, 3: 10}
"""Outputs per logistic: a weight, and per channel a mean and a scale. Three channels add the
coefficients of red in green, and of red and green in blue (section 2.2)."""
SMALLEST_LOG_SCALE = -7.0
"""From `openai/pixel-cnn`."""
HALF = 1.0 / 255.0
"""Half the width of a grey level in [-1, 1]."""
SPREAD = 0.05
"""Standard deviation of the initial directions (`openai/pixel-cnn`)."""
GATE = 0.1
"""Initial norm of the weights before a gate: upstream's ``init_scale``."""


def concat_elu(hidden: Tensor, dim: int = 1) -> Tensor:
    """Concatenate elu(x) and elu(-x), which doubles the channels."""
    return functional.elu(torch.cat([hidden, -hidden], dim))


class Shifted(nn.Module):
    """Causal convolution: no row below, and no column to the right unless the kernel has three.

    Its weights are length * direction / |direction| for each output (Salimans & Kingma 2016). The
    lengths begin at ``length`` and the biases at 0. This is our choice instead of upstream's
    initialisation from a first batch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        length: float = 1.0,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.direction = nn.Parameter(SPREAD * torch.randn(outputs, inputs, *kernel))
        self.length = nn.Parameter(torch.full((outputs,), length))
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Tensor:
        """Normalised weights, (outputs, inputs, rows, columns)."""
        size = self.direction.flatten(1).norm(dim=1)
        return self.direction * (self.length / size).view(-1, 1, 1, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, columns = self.kernel
        left, right = (1, 1) if columns == 3 else (columns - 1, 0)
        padded = functional.pad(hidden, (left, right, rows - 1, 0))
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


class Grown(nn.Module):
    """Transposed convolution of stride 2, the counterpart of :class:`Shifted`."""

    def __init__(self, filters: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.side = (kernel[1] - 1) // 2  # columns cropped on either side
        self.direction = nn.Parameter(SPREAD * torch.randn(filters, filters, *kernel))
        self.length = nn.Parameter(torch.ones(filters))
        self.bias = nn.Parameter(torch.zeros(filters))

    @property
    def weight(self) -> Tensor:
        """Normalised weights, (inputs, outputs, rows, columns)."""
        size = self.direction.transpose(0, 1).flatten(1).norm(dim=1)
        return self.direction * (self.length / size).view(1, -1, 1, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        side = (0, self.side)
        return functional.conv_transpose2d(hidden, self.weight, self.bias, 2, side, side)


class Gated(nn.Module):
    """Gated residual block with ``skips`` shortcuts from other parts of the network."""

    def __init__(self, filters: int, kernel: tuple[int, int], skips: int, dropout: float) -> None:
        super().__init__()
        self.first = Shifted(2 * filters, filters, kernel)
        self.skip = Shifted(2 * skips * filters, filters, (1, 1)) if skips else None
        self.dropout = nn.Dropout(dropout)
        self.second = Shifted(2 * filters, 2 * filters, kernel, length=GATE)

    def forward(self, hidden: Tensor, *skipped: Tensor) -> Tensor:
        inner = self.first(concat_elu(hidden))
        if self.skip is not None:
            inner = inner + self.skip(torch.cat([concat_elu(part) for part in skipped], 1))
        inner = self.dropout(concat_elu(inner))
        return hidden + functional.glu(self.second(inner), dim=1)


Layer = TypeVar("Layer", Shifted, Grown, Gated)


class Pair(nn.Module, Generic[Layer]):
    """One layer in both streams: ``u`` gets the rows above, ``ul`` also the pixels to the left."""

    def __init__(self, u: Layer, ul: Layer) -> None:
        super().__init__()
        self.u: Layer = u
        self.ul: Layer = ul


class PixelCnn(nn.Module):
    """Map pixels (n, C, H, W) in [-1, 1] to mixtures (n, outputs, H, W), see :class:`Mixture`.

    The mixture of a pixel depends only on the rows above and the pixels to its left.

    Args:
        channels: 1 or 3.
        scales: number of resolutions, each half of the one before.
        blocks: gated blocks per scale on the way up. On the way down there is one more, except at
            the coarsest scale.
        filters: channels of every layer.
        mixtures: logistics per pixel.
        dropout: dropout rate in the gated blocks while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        scales: int,
        blocks: int,
        filters: int,
        mixtures: int,
        dropout: float,
    ) -> None:
        super().__init__()
        wide, square = (2, 3), (2, 2)

        def gated(count: int, skips: int) -> nn.ModuleList:
            return nn.ModuleList(
                Pair(
                    Gated(filters, wide, skips, dropout), Gated(filters, square, skips + 1, dropout)
                )
                for _ in range(count)
            )

        self.channels, self.scales, self.filters = channels, scales, filters
        self.two_above = Shifted(channels + 1, filters, wide)
        self.above = Shifted(channels + 1, filters, (1, 3))
        self.left = Shifted(channels + 1, filters, (2, 1))
        up = nn.ModuleList(gated(blocks, 0) for _ in range(scales))
        down = nn.ModuleList(gated(blocks + (scale < scales - 1), 1) for scale in range(scales))
        shrink = nn.ModuleList(
            Pair(Shifted(filters, filters, wide, 2), Shifted(filters, filters, square, 2))
            for _ in range(scales - 1)
        )
        grow = nn.ModuleList(
            Pair(Grown(filters, wide), Grown(filters, square)) for _ in range(scales - 1)
        )
        # by scale, the finest first
        self.up = cast(Sequence[Sequence[Pair[Gated]]], up)
        self.down = cast(Sequence[Sequence[Pair[Gated]]], down)
        self.shrink = cast(Sequence[Pair[Shifted]], shrink)
        self.grow = cast(Sequence[Pair[Grown]], grow)
        self.last = Shifted(filters, PER_MIXTURE[channels] * mixtures, (1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # the channel of ones distinguishes pixels from padding
        marked = functional.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0)
        u = _moved_down(self.two_above(marked))
        ul = _moved_down(self.above(marked)) + _moved_right(self.left(marked))
        skips = [(u, ul)]
        for scale in range(self.scales):
            for pair in self.up[scale]:
                u = pair.u(u)
                ul = pair.ul(ul, u)
                skips.append((u, ul))
            if scale + 1 < self.scales:
                u, ul = self.shrink[scale].u(u), self.shrink[scale].ul(ul)
                skips.append((u, ul))
        u, ul = skips.pop()
        for scale in reversed(range(self.scales)):
            for pair in self.down[scale]:
                u_skipped, ul_skipped = skips.pop()
                u = pair.u(u, u_skipped)
                ul = pair.ul(ul, u, ul_skipped)
            if scale:
                u, ul = self.grow[scale - 1].u(u), self.grow[scale - 1].ul(ul)
        return self.last(functional.elu(ul))


class Mixture:
    """Distribution of a pixel's grey levels: a discretised mixture of logistics.

    The lowest and the highest level include the tails. Channels are coupled linearly: the mean of
    green depends on red, and that of blue on both (equation 3).

    Args:
        output: output of the network, (..., outputs).
        channels: 1 or 3.
    """

    def __init__(self, output: Tensor, channels: int) -> None:
        count = output.shape[-1] // PER_MIXTURE[channels]
        self.log_weights = functional.log_softmax(output[..., :count], dim=-1)
        each = output[..., count:].unflatten(-1, (channels, -1, count))
        self.means = each[..., 0, :]
        self.sharpness = torch.exp(-each[..., 1, :].clamp(min=SMALLEST_LOG_SCALE))
        self.log_widths = torch.log(-torch.expm1(-2.0 * HALF * self.sharpness))
        self.coefficients = each[..., 2:, :].tanh()

    def log_probabilities(self, levels: Tensor, previous: Tensor) -> Tensor:
        """Log-probabilities of levels of the channel that follows ``previous``, in nats.

        Args:
            levels: int64 (..., levels) in 0 ... 255.
            previous: values of the channels before it in [-1, 1], (..., 0), (..., 1) or (..., 2).

        Returns:
            (..., levels).
        """
        mean, sharp, log_width = self._logistics(previous)
        centred = to_pixels(levels, mean.dtype).unsqueeze(-1) - mean
        darkest, brightest = (levels == 0).unsqueeze(-1), (levels == 255).unsqueeze(-1)
        # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b - a)), s the logistic function
        upper = functional.logsigmoid(sharp * (centred + HALF)).masked_fill(brightest, 0.0)
        lower = functional.logsigmoid(sharp * (HALF - centred)).masked_fill(darkest, 0.0)
        inside = upper + lower + torch.where(darkest | brightest, 0.0, log_width)
        return torch.logsumexp(inside + self.log_weights.unsqueeze(-2), dim=-1)

    def nearby_probabilities(self, middle: Tensor, reach: int, previous: Tensor) -> Tensor:
        """Probabilities of the levels around ``middle``, from 0 ... 255.

        They are 0 outside that range, and below about 1e-300. Uses no logarithm and evaluates each
        boundary between two levels once.

        Args:
            middle: int64 (n, 1).
            reach: largest distance in levels.
            previous: the channels before it, as in :meth:`log_probabilities`.

        Returns:
            (n, 2 * reach + 1).
        """
        # mixtures first: sums over a short last dimension are slow
        mean, sharp, log_width = (value.permute(2, 0, 1) for value in self._logistics(previous))
        levels = middle + torch.arange(-reach, reach + 2, device=middle.device)
        boundary = to_pixels(levels, mean.dtype) - HALF
        boundary.masked_fill_(levels <= 0, -torch.inf).masked_fill_(levels > 255, torch.inf)
        below = sharp * (boundary - mean)
        # s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)), s the logistic function; a tail is s(a) s(-b)
        inside = below[..., 1:].sigmoid() * below[..., :-1].neg().sigmoid()
        inside *= self.log_weights.exp().T.unsqueeze(-1)
        tails = inside.sum(dim=0)
        between = inside.mul_(log_width.exp()).sum(dim=0)
        levels = levels[:, :-1]
        return torch.where((levels == 0) | (levels == 255), tails, between)

    def _logistics(self, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, sharpness and log widths of the next channel, each (..., 1, mixtures)."""
        channel = previous.shape[-1]
        mean, first = self.means[..., channel, :], channel * (channel - 1) // 2
        for earlier in range(channel):
            coefficient = self.coefficients[..., first + earlier, 0, :]
            mean = mean + coefficient * previous[..., earlier, None]
        sharp, log_width = self.sharpness[..., channel, :], self.log_widths[..., channel, :]
        return mean.unsqueeze(-2), sharp.unsqueeze(-2), log_width.unsqueeze(-2)


def to_pixels(levels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map levels 0 ... 255 to the network's range [-1, 1]."""
    return levels.to(dtype) / 127.5 - 1.0


def log_likelihood(network: PixelCnn, levels: Tensor) -> Tensor:
    """Log-probability of each level, given the levels before it.

    Args:
        levels: int64 (n, C, H, W) in 0 ... 255.

    Returns:
        (n, H, W, C), in nats.
    """
    pixels = to_pixels(levels, network.last.bias.dtype)
    output = at_least_float32(network(pixels))
    mixture = Mixture(output.permute(0, 2, 3, 1), network.channels)
    levels, previous = levels.permute(0, 2, 3, 1), pixels.permute(0, 2, 3, 1)
    channels = [
        mixture.log_probabilities(levels[..., channel, None], previous[..., :channel])
        for channel in range(network.channels)
    ]
    return torch.cat(channels, dim=-1)


def _moved_down(hidden: Tensor) -> Tensor:
    return functional.pad(hidden[:, :, :-1], (0, 0, 1, 0))


def _moved_right(hidden: Tensor) -> Tensor:
    return functional.pad(hidden[:, :, :, :-1], (1, 0))
