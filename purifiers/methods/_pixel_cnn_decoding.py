"""Cached decoding of PixelCNN++: the most likely grey level, pixel after pixel.

The stream ``u`` depends only on the rows above a pixel, so it is computed one row at a time. The
same holds for the contribution of the row above to the stream ``ul``; the pixel itself then needs
two columns of one row. At coarser scales only every second row and column changes anything. In
total, an image costs the arithmetic of one pass instead of one pass per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.methods._pixel_cnn import (
    Gated,
    Grown,
    Mixture,
    Pair,
    PixelCnn,
    Shifted,
    concat_elu,
    to_pixels,
)


def decode(network: PixelCnn, levels: Tensor, reach: int) -> Tensor:
    """Choose the most likely levels within ``reach`` of the given ones, in raster order, red first.

    Args:
        network: in evaluation mode. Use double precision, so that rounding, which depends on the
            batch, does not decide between levels.
        levels: int64 (n, C, H, W) in 0 ... 255.
        reach: largest change in levels.

    Returns:
        Levels of the same shape; each pixel is conditioned on the new levels before it.
    """
    decoder = Decoder(network, levels)
    _, _, height, width = levels.shape
    for row in range(height):
        decoder.start(row)
        for column in range(width):
            best = choose(decoder.output(row, column), levels[:, :, row, column], reach)
            decoder.settle(row, column, best)
    return decoder.levels


def decode_naively(
    network: PixelCnn, levels: Tensor, reach: int, pixels: int | None = None
) -> Tensor:
    """Do the same with one pass of the whole network per pixel.

    Args:
        pixels: decode only this many pixels; all if None.
    """
    decoded = levels.clone()
    width = levels.shape[3]
    for position in range(levels[0, 0].numel() if pixels is None else pixels):
        row, column = divmod(position, width)
        output = network(to_pixels(decoded, network.last.bias.dtype))[:, :, row, column]
        decoded[:, :, row, column] = choose(output, levels[:, :, row, column], reach)
    return decoded


def choose(output: Tensor, centre: Tensor, reach: int) -> Tensor:
    """Most likely levels of one pixel, channel after channel, int64 (n, C).

    The lowest of equally likely levels is chosen.

    Args:
        output: output of the network at that pixel, (n, outputs).
        centre: levels from which the result differs by at most ``reach``, int64 (n, C).
    """
    mixture = Mixture(output, centre.shape[1])
    around = torch.arange(-reach, reach + 1, device=centre.device)
    number = torch.finfo(output.dtype)
    lossy = number.tiny / number.eps  # smaller products have lost digits; use logarithms
    previous, levels_by_channel = output.new_empty(len(output), 0), []
    for channel in centre.split(1, dim=1):
        levels = channel + around
        probabilities = mixture.nearby_probabilities(channel, reach, previous)
        faint = probabilities.amax(dim=1, keepdim=True) < lossy
        if faint.any():
            logarithms = mixture.log_probabilities(levels, previous)
            logarithms.masked_fill_((levels < 0) | (levels > 255), -torch.inf)
            probabilities = torch.where(faint, logarithms, probabilities)
        best = levels.gather(1, probabilities.argmax(dim=1, keepdim=True))
        levels_by_channel.append(best)
        previous = torch.cat([previous, to_pixels(best, output.dtype)], dim=1)
    return torch.cat(levels_by_channel, dim=1)


class Decoder:
    """Compute a network's outputs pixel by pixel and collect the chosen ``levels``.

    For each row, call :meth:`start`; then, for each column, :meth:`output` and :meth:`settle`.
    """

    def __init__(self, network: PixelCnn, levels: Tensor) -> None:
        count, channels, height, width = levels.shape
        self.levels, self.scales = torch.zeros_like(levels), network.scales
        weight = network.last.weight
        self.rows = weight.new_ones(height, count, width, channels + 1)
        self.nothing = weight.new_zeros(count, width, network.filters)
        self.two_above, self.above = _Rows(network.two_above), _Rows(network.above)
        self.left = _Pixels(network.left, count, width)

        scales = range(network.scales)

        def blocks(pairs: Sequence[Pair[Gated]], scale: int) -> list[_Block]:
            return [_Block(pair, count, width >> scale) for pair in pairs]

        self.up = [blocks(network.up[scale], scale) for scale in scales]
        self.down = [blocks(network.down[scale], scale) for scale in scales]
        self.shrink_u = [_Rows(pair.u) for pair in network.shrink]
        self.shrink_ul = [
            _Pixels(pair.ul, count, width >> scale) for scale, pair in enumerate(network.shrink)
        ]
        self.grow_u = [_GrownRow(pair.u) for pair in network.grow]
        self.grow_ul = [_GrownPixel(pair.ul) for pair in network.grow]
        self.last, self.last_bias = _matrix(weight), network.last.bias
        # per scale on the way down: u of the newest row, ul of the newest pixel of each column
        self.newest_u: list[Tensor] = [self.nothing] * network.scales
        self.newest_ul = [[self.nothing[:, 0]] * (width >> scale) for scale in scales]

    def start(self, row: int) -> None:
        """Compute all parts of a row that do not depend on the row's own pixels."""
        u = self.base = self.nothing
        if row:
            above = self.rows[row - 1]
            u, self.base = self.two_above(above), self.above(above)
        self.left.start()
        skips: list[list[Tensor]] = []
        for scale in range(self.scales):
            skips.append([u])
            for block in self.up[scale]:
                u = block.start(u)
                skips[scale].append(u)
            if scale + 1 == self.scales:
                break
            if (row >> scale) % 2:
                self.shrink_u[scale].remember(u)
                break
            u = self.shrink_u[scale](u)
            self.shrink_ul[scale].start()
        for scale in reversed(range(len(skips))):
            if scale + 1 == self.scales:
                u = skips[scale].pop()
            else:
                u = self.grow_u[scale](self.newest_u[scale + 1], (row >> scale) % 2)
            for block in self.down[scale]:
                u = block.start(u, skips[scale].pop())
            self.newest_u[scale] = u

    def output(self, row: int, column: int) -> Tensor:
        """Network's output at this pixel, (n, outputs)."""
        ul = self.base[:, column]
        if column:
            ul = ul + self.left(column - 1, self.rows[row, :, column - 1])
        skips: list[list[Tensor]] = []
        for scale in range(self.scales):
            skips.append([ul])
            for block in self.up[scale]:
                ul = block.pixel(column >> scale, ul)
                skips[scale].append(ul)
            if scale + 1 == self.scales:
                break
            if (row >> scale | column >> scale) % 2:
                self.shrink_ul[scale].remember(column >> scale, ul)
                break
            ul = self.shrink_ul[scale](column >> scale, ul)
        for scale in reversed(range(len(skips))):
            if scale + 1 == self.scales:
                ul = skips[scale].pop()
            else:
                coarse = self.newest_ul[scale + 1][column >> scale + 1]
                ul = self.grow_ul[scale](coarse, (row >> scale) % 2, (column >> scale) % 2)
            for block in self.down[scale]:
                ul = block.pixel(column >> scale, ul, skips[scale].pop())
            self.newest_ul[scale][column >> scale] = ul
        return torch.addmm(self.last_bias, functional.elu(ul), self.last)

    def settle(self, row: int, column: int, best: Tensor) -> None:
        """Set the levels of this pixel, int64 (n, C)."""
        self.levels[:, :, row, column] = best
        self.rows[row, :, column, :-1] = to_pixels(best, self.rows.dtype)


class _Rows:
    """A convolution of three columns, applied to one row (n, W, inputs) after the other."""

    def __init__(self, layer: Shifted) -> None:
        self.weight, self.bias, self.stride = _matrix(layer.weight), layer.bias, layer.stride
        self.both = layer.kernel[0] == 2
        self.previous_row: Tensor | None = None

    def __call__(self, row: Tensor) -> Tensor:
        """Output for the row, (n, W / stride, outputs)."""
        previous_row, windows = self.previous_row, self.remember(row)
        if self.both:
            previous_row = torch.zeros_like(windows) if previous_row is None else previous_row
            windows = torch.cat([previous_row, windows], dim=2)
        return windows @ self.weight + self.bias

    def remember(self, row: Tensor) -> Tensor:
        """Store a row for the next call; return its windows."""
        windows = functional.pad(row, (0, 0, 1, 1)).unfold(1, 3, self.stride)
        self.previous_row = windows.transpose(2, 3).flatten(2)
        return self.previous_row


class _Pixels:
    """A convolution of at most two columns, applied to one pixel (n, inputs) after the other."""

    def __init__(self, layer: Shifted, count: int, width: int) -> None:
        above, beside = layer.weight.unbind(2)
        self.above, self.beside = _matrix(above.unsqueeze(2)), _matrix(beside.unsqueeze(2))
        self.bias, self.stride, self.columns = layer.bias, layer.stride, layer.kernel[1]
        # the newest pixel of each column, after the padding; stored views save calls
        padding, inputs = self.columns - 1, above.shape[1]
        self.row = above.new_zeros(count, padding + width, inputs)
        self.newest = self.row[:, padding:].unbind(1)
        self.windows = [
            self.row[:, column : column + self.columns].flatten(1) for column in range(width)
        ]
        self.from_above: tuple[Tensor, ...] = ()

    def start(self, more: Tensor | None = None) -> None:
        """Compute the contribution of the row above.

        Args:
            more: further summand (n, W, outputs); none if None.
        """
        windows = self.row.unfold(1, self.columns, self.stride).transpose(2, 3).flatten(2)
        from_above = windows @ self.above + self.bias
        if more is not None:
            from_above += more
        self.from_above = from_above.unbind(1)

    def __call__(self, column: int, pixel: Tensor) -> Tensor:
        """Output for the pixel, (n, outputs)."""
        self.remember(column, pixel)
        return torch.addmm(
            self.from_above[column // self.stride], self.windows[column], self.beside
        )

    def remember(self, column: int, pixel: Tensor) -> None:
        """Store a pixel for the next column and row."""
        self.newest[column].copy_(pixel)


class _Block:
    """The two gated blocks of one layer, of ``u`` and ``ul``."""

    def __init__(self, pair: Pair[Gated], count: int, width: int) -> None:
        u, ul = pair.u, pair.ul
        self.u_first, self.u_second = _Rows(u.first), _Rows(u.second)
        self.ul_first = _Pixels(ul.first, count, width)
        self.ul_second = _Pixels(ul.second, count, width)
        assert ul.skip is not None
        matrix, both = _matrix(ul.skip.weight), 2 * len(ul.first.bias)
        self.from_u, self.from_ul, self.bias = matrix[:both], matrix[both:], ul.skip.bias
        self.skip = None if u.skip is None else (_matrix(u.skip.weight), u.skip.bias)

    def start(self, u: Tensor, skipped: Tensor | None = None) -> Tensor:
        """Compute a row of ``u``, (n, W, filters), and its contribution to ``ul``."""
        inner = self.u_first(concat_elu(u, -1))
        if skipped is not None and self.skip is not None:
            matrix, bias = self.skip
            inner += concat_elu(skipped, -1) @ matrix + bias
        u = u + functional.glu(self.u_second(concat_elu(inner, -1)), -1)
        self.ul_first.start(concat_elu(u, -1) @ self.from_u + self.bias)
        self.ul_second.start()
        return u

    def pixel(self, column: int, ul: Tensor, skipped: Tensor | None = None) -> Tensor:
        """Compute ``ul`` of one pixel, (n, filters)."""
        inner = self.ul_first(column, concat_elu(ul))
        if skipped is not None:
            inner.addmm_(concat_elu(skipped), self.from_ul)
        return ul + functional.glu(self.ul_second(column, concat_elu(inner)), 1)


class _GrownRow:
    """Transposed convolution of ``u``, applied to one coarse row."""

    def __init__(self, layer: Grown) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def __call__(self, row: Tensor, phase: int) -> Tensor:
        """Map (n, w, filters) to (n, 2 w, filters), for the even or odd row of the finer map."""
        first, second, third = self.weight[:, :, phase].unbind(2)
        right = functional.pad(row[:, 1:], (0, 0, 0, 1))
        columns = torch.stack([row @ second, row @ third + right @ first], dim=2)
        return columns.flatten(1, 2) + self.bias


class _GrownPixel:
    """Transposed convolution of ``ul``, which makes four pixels of one."""

    def __init__(self, layer: Grown) -> None:
        self.weight, self.bias = layer.weight.permute(2, 3, 0, 1).contiguous(), layer.bias

    def __call__(self, pixel: Tensor, row_phase: int, column_phase: int) -> Tensor:
        return torch.addmm(self.bias, pixel, self.weight[row_phase, column_phase])


def _matrix(weight: Tensor) -> Tensor:
    """Reshape weights (outputs, inputs, rows, columns) to (rows * columns * inputs, outputs)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
