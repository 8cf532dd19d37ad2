"""Pixel after pixel the most likely grey level, with nothing of PixelCNN++ computed twice.

Its stream ``u`` sees only the rows above a pixel, so it is computed a whole row at a time. So is
what the row above contributes to the stream ``ul``, of which the pixel itself then needs two
columns of one row. At coarser scales only every second row and column brings anything new. In all,
an image costs the arithmetic of one pass instead of one per pixel.
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
    """The most likely levels within ``reach`` of the given ones, in raster order, red first.

    Args:
        network: in evaluation mode. In double precision no rounding, which depends on the batch,
            decides between levels.
        levels: int64 (n, C, H, W) in 0 ... 255.
        reach: largest change in levels.

    Returns:
        Levels of the same shape; each pixel is conditioned on those already chosen.
    """
    decoder = Decoder(network, levels)
    _, _, height, width = levels.shape
    for row in range(height):
        decoder.start(row)
        for column in range(width):
            chosen = choose(decoder.output(row, column), levels[:, :, row, column], reach)
            decoder.settle(row, column, chosen)
    return decoder.levels


def decode_naively(
    network: PixelCnn, levels: Tensor, reach: int, pixels: int | None = None
) -> Tensor:
    """The same with a pass of the whole network per pixel; ``pixels``: only the first ones."""
    chosen = levels.clone()
    width = levels.shape[3]
    for place in range(levels[0, 0].numel() if pixels is None else pixels):
        row, column = divmod(place, width)
        output = network(to_pixels(chosen, network.last.bias.dtype))[:, :, row, column]
        chosen[:, :, row, column] = choose(output, levels[:, :, row, column], reach)
    return chosen


def choose(output: Tensor, wanted: Tensor, reach: int) -> Tensor:
    """The most likely levels of one pixel, channel after channel; the lowest of equal ones.

    Args:
        output: of the network at that pixel, (n, outputs).
        wanted: the levels that they may be ``reach`` away from, int64 (n, C).
    """
    mixture = Mixture(output, wanted.shape[1])
    around = torch.arange(-reach, reach + 1, device=wanted.device)
    number = torch.finfo(output.dtype)
    lossy = number.tiny / number.eps  # products below it have lost digits: logarithms decide
    known, chosen = output.new_empty(len(output), 0), []
    for channel in wanted.split(1, dim=1):
        levels = channel + around
        found = mixture.nearby_probabilities(channel, reach, known)
        faint = found.amax(dim=1, keepdim=True) < lossy
        if faint.any():
            logarithms = mixture.log_probabilities(levels, known)
            logarithms.masked_fill_((levels < 0) | (levels > 255), -torch.inf)
            found = torch.where(faint, logarithms, found)
        best = levels.gather(1, found.argmax(dim=1, keepdim=True))
        chosen.append(best)
        known = torch.cat([known, to_pixels(best, output.dtype)], dim=1)
    return torch.cat(chosen, dim=1)


class Decoder:
    """A network's outputs at one pixel after the other; ``levels`` is decided on the way.

    For each row: :meth:`start`, then for each column :meth:`output` and :meth:`settle`.
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
        # of each scale on the way down: u of its newest row, ul of its newest pixel per column
        self.newest_u: list[Tensor] = [self.nothing] * network.scales
        self.newest_ul = [[self.nothing[:, 0]] * (width >> scale) for scale in scales]

    def start(self, row: int) -> None:
        """All that does not depend on the row's own pixels."""
        u = self.base = self.nothing
        if row:
            above = self.rows[row - 1]
            u, self.base = self.two_above(above), self.above(above)
        self.left.start()
        passed: list[list[Tensor]] = []
        for scale in range(self.scales):
            passed.append([u])
            for block in self.up[scale]:
                u = block.start(u)
                passed[scale].append(u)
            if scale + 1 == self.scales:
                break
            if (row >> scale) % 2:
                self.shrink_u[scale].remember(u)
                break
            u = self.shrink_u[scale](u)
            self.shrink_ul[scale].start()
        for scale in reversed(range(len(passed))):
            if scale + 1 == self.scales:
                u = passed[scale].pop()
            else:
                u = self.grow_u[scale](self.newest_u[scale + 1], (row >> scale) % 2)
            for block in self.down[scale]:
                u = block.start(u, passed[scale].pop())
            self.newest_u[scale] = u

    def output(self, row: int, column: int) -> Tensor:
        """The network's output at this pixel, (n, outputs)."""
        ul = self.base[:, column]
        if column:
            ul = ul + self.left(column - 1, self.rows[row, :, column - 1])
        passed: list[list[Tensor]] = []
        for scale in range(self.scales):
            passed.append([ul])
            for block in self.up[scale]:
                ul = block.pixel(column >> scale, ul)
                passed[scale].append(ul)
            if scale + 1 == self.scales:
                break
            if (row >> scale | column >> scale) % 2:
                self.shrink_ul[scale].remember(column >> scale, ul)
                break
            ul = self.shrink_ul[scale](column >> scale, ul)
        for scale in reversed(range(len(passed))):
            if scale + 1 == self.scales:
                ul = passed[scale].pop()
            else:
                coarse = self.newest_ul[scale + 1][column >> scale + 1]
                ul = self.grow_ul[scale](coarse, (row >> scale) % 2, (column >> scale) % 2)
            for block in self.down[scale]:
                ul = block.pixel(column >> scale, ul, passed[scale].pop())
            self.newest_ul[scale][column >> scale] = ul
        return torch.addmm(self.last_bias, functional.elu(ul), self.last)

    def settle(self, row: int, column: int, chosen: Tensor) -> None:
        """This pixel has the chosen levels, int64 (n, C)."""
        self.levels[:, :, row, column] = chosen
        self.rows[row, :, column, :-1] = to_pixels(chosen, self.rows.dtype)


class _Rows:
    """A convolution of three columns, given one row (n, W, inputs) after the other."""

    def __init__(self, layer: Shifted) -> None:
        self.weight, self.bias, self.stride = _matrix(layer.weight), layer.bias, layer.stride
        self.both = layer.kernel[0] == 2
        self.before: Tensor | None = None

    def __call__(self, row: Tensor) -> Tensor:
        """(n, W / stride, outputs)."""
        before, windows = self.before, self.remember(row)
        if self.both:
            before = torch.zeros_like(windows) if before is None else before
            windows = torch.cat([before, windows], dim=2)
        return windows @ self.weight + self.bias

    def remember(self, row: Tensor) -> Tensor:
        """Keep a row for the next one."""
        windows = functional.pad(row, (0, 0, 1, 1)).unfold(1, 3, self.stride)
        self.before = windows.transpose(2, 3).flatten(2)
        return self.before


class _Pixels:
    """A convolution of at most two columns, given one pixel (n, inputs) after the other."""

    def __init__(self, layer: Shifted, count: int, width: int) -> None:
        above, beside = layer.weight.unbind(2)
        self.above, self.beside = _matrix(above.unsqueeze(2)), _matrix(beside.unsqueeze(2))
        self.bias, self.stride, self.columns = layer.bias, layer.stride, layer.kernel[1]
        # the newest pixel of each column, behind the padding; views save calls
        padding, inputs = self.columns - 1, above.shape[1]
        self.row = above.new_zeros(count, padding + width, inputs)
        self.places = self.row[:, padding:].unbind(1)
        self.windows = [
            self.row[:, place : place + self.columns].flatten(1) for place in range(width)
        ]
        self.known: tuple[Tensor, ...] = ()

    def start(self, more: Tensor | None = None) -> None:
        """What the row above contributes, and ``more`` (n, W, outputs) that comes on top."""
        windows = self.row.unfold(1, self.columns, self.stride).transpose(2, 3).flatten(2)
        known = windows @ self.above + self.bias
        if more is not None:
            known += more
        self.known = known.unbind(1)

    def __call__(self, column: int, pixel: Tensor) -> Tensor:
        """(n, outputs)."""
        self.remember(column, pixel)
        return torch.addmm(self.known[column // self.stride], self.windows[column], self.beside)

    def remember(self, column: int, pixel: Tensor) -> None:
        """Keep a pixel for the next column and row."""
        self.places[column].copy_(pixel)


class _Block:
    """Both gated blocks of one layer."""

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
        """The row of ``u`` (n, W, filters), which becomes known to ``ul``."""
        inner = self.u_first(concat_elu(u, -1))
        if skipped is not None and self.skip is not None:
            matrix, bias = self.skip
            inner += concat_elu(skipped, -1) @ matrix + bias
        u = u + functional.glu(self.u_second(concat_elu(inner, -1)), -1)
        self.ul_first.start(concat_elu(u, -1) @ self.from_u + self.bias)
        self.ul_second.start()
        return u

    def pixel(self, column: int, ul: Tensor, skipped: Tensor | None = None) -> Tensor:
        """``ul`` of one pixel, (n, filters)."""
        inner = self.ul_first(column, concat_elu(ul))
        if skipped is not None:
            inner.addmm_(concat_elu(skipped), self.from_ul)
        return ul + functional.glu(self.ul_second(column, concat_elu(inner)), 1)


class _GrownRow:
    """The transposed convolution of ``u``, of one coarse row."""

    def __init__(self, layer: Grown) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def __call__(self, row: Tensor, phase: int) -> Tensor:
        """(n, w, filters) to (n, 2 w, filters), for the even or the odd row of the finer map."""
        first, second, third = self.weight[:, :, phase].unbind(2)
        right = functional.pad(row[:, 1:], (0, 0, 0, 1))
        columns = torch.stack([row @ second, row @ third + right @ first], dim=2)
        return columns.flatten(1, 2) + self.bias


class _GrownPixel:
    """The transposed convolution of ``ul``, where four pixels come from one."""

    def __init__(self, layer: Grown) -> None:
        self.weight, self.bias = layer.weight.permute(2, 3, 0, 1).contiguous(), layer.bias

    def __call__(self, pixel: Tensor, row_phase: int, column_phase: int) -> Tensor:
        return torch.addmm(self.bias, pixel, self.weight[row_phase, column_phase])


def _matrix(weight: Tensor) -> Tensor:
    """(outputs, inputs, rows, columns) to (rows * columns * inputs, outputs)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
