"""NCSNv2, the score network of Song & Ermon 2020 (`ermongroup/ncsnv2`), as ADP uses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-5  # of the channel means, upstream
POOLING = 5  # side of the chained pooling's windows, upstream


class ScoreNetwork(nn.Module):
    """Images in [0, 1] to the score of the noisy image times its noise level.

    A residual encoder of four stages of two blocks, with dilation in place of resolution in the
    last two, and a RefineNet decoder of four blocks. Upstream divides the output by the noise level
    of the image; here :meth:`forward` is undivided, and the caller divides.

    Args:
        channels: of the images.
        width: channels of the first stage, upstream's ``ngf``; the others have twice as many. With
            3 channels and 128, 64 or 32 it has 29,694,083, 7,429,187 or 1,860,131 parameters.
        blocks: residual blocks of a stage, and residual units that adapt an input of the decoder; 2
            upstream.

    Shapes: float32 (n, C, H, W) to (n, C, H, W), with even H and W.
    """

    def __init__(self, channels: int, width: int, blocks: int = 2) -> None:
        super().__init__()
        wide = 2 * width
        self.first = _convolution(channels, width)
        self.stages = nn.ModuleList(
            [
                _stage(_Residual(width, width), width, blocks),
                _stage(_Residual(width, wide, halved=True), wide, blocks),
                _dilated_stage(wide, 2, blocks),
                _dilated_stage(wide, 4, blocks),
            ]
        )
        self.refined = nn.ModuleList(
            [
                _Refine([wide], wide, blocks),
                _Refine([wide, wide], wide, blocks),
                _Refine([wide, wide], width, blocks),
                _Refine([width, width], width, blocks, last_units=3),
            ]
        )
        self.norm = InstanceNormPlus(width)
        self.last = _convolution(width, channels)

    def forward(self, images: Tensor) -> Tensor:
        """The score times the noise level, (n, C, H, W)."""
        hidden = self.first(2.0 * images - 1.0)
        encoded = []
        for stage in self.stages:
            hidden = stage(hidden)
            encoded.append(hidden)
        decoded = self.refined[0]([encoded.pop()])
        for refine in self.refined[1:]:
            decoded = refine([encoded.pop(), decoded])
        output: Tensor = self.last(functional.elu(self.norm(decoded)))
        return output


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps the channels' means relative to each other.

    gamma (normalised + alpha z) + beta, where z are the means of an image's channels, normalised
    over the channels (Song & Ermon 2019, appendix A.1: InstanceNorm++).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1.0 + 0.02 * torch.randn(channels))
        self.gamma = nn.Parameter(1.0 + 0.02 * torch.randn(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        spread = means.var(dim=1, keepdim=True)  # unbiased, as upstream
        relative = (means - means.mean(dim=1, keepdim=True)) / torch.sqrt(spread + NORM_EPS)
        shifted = functional.instance_norm(images) + (self.alpha * relative)[:, :, None, None]
        return self.gamma[:, None, None] * shifted + self.beta[:, None, None]


class _Residual(nn.Module):
    """Pre-activation residual block: norm, ELU, convolution, twice.

    Args:
        halved: halve the sides by mean pooling after the second convolution and the shortcut.
        dilation: of all 3x3 convolutions.
        projected: use a convolution as shortcut though the number of channels does not change.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        halved: bool = False,
        dilation: int = 1,
        projected: bool = False,
    ) -> None:
        super().__init__()
        middle = inputs if halved or projected else outputs
        self.norm1, self.norm2 = InstanceNormPlus(inputs), InstanceNormPlus(middle)
        self.conv1 = _convolution(inputs, middle, dilation)
        self.conv2 = _convolution(middle, outputs, dilation)
        self.halved = halved
        self.shortcut: nn.Module = nn.Identity()
        if halved:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        elif projected or inputs != outputs:
            self.shortcut = _convolution(inputs, outputs, dilation)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv1(functional.elu(self.norm1(images)))
        hidden = self.conv2(functional.elu(self.norm2(hidden)))
        total: Tensor = hidden + self.shortcut(images)
        return functional.avg_pool2d(total, 2) if self.halved else total


def _stage(first: _Residual, width: int, blocks: int, dilation: int = 1) -> nn.Sequential:
    """A first block, then blocks that keep width and resolution."""
    others = (_Residual(width, width, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def _dilated_stage(width: int, dilation: int, blocks: int) -> nn.Sequential:
    """Blocks that keep the resolution; the first one has a convolution as shortcut."""
    first = _Residual(width, width, dilation=dilation, projected=True)
    return _stage(first, width, blocks, dilation)


class _Refine(nn.Module):
    """RefineNet block (Lin et al. 2017): adapt, fuse, chained pooling, output units.

    Args:
        inputs: channels of each input.
        width: channels of the output.
        adapting: residual units for each input.
        last_units: residual units after the pooling.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, adapting: int, last_units: int = 1
    ) -> None:
        super().__init__()
        self.adapted = nn.ModuleList(_Units(channels, adapting) for channels in inputs)
        self.fused = nn.ModuleList()
        if len(inputs) > 1:
            self.fused.extend(_convolution(channels, width) for channels in inputs)
        self.pooled = nn.ModuleList(_convolution(width, width, bias=False) for _ in range(2))
        self.units = _Units(width, last_units)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        adapted = [adapt(hidden) for adapt, hidden in zip(self.adapted, inputs, strict=True)]
        hidden = adapted[0]
        if len(self.fused):
            size = hidden.shape[2:]
            parts = [conv(part) for conv, part in zip(self.fused, adapted, strict=True)]
            hidden = torch.stack(
                [
                    functional.interpolate(part, size, mode="bilinear", align_corners=True)
                    for part in parts
                ]
            ).sum(dim=0)
        hidden = functional.elu(hidden)
        path = hidden
        for convolution in self.pooled:
            path = convolution(_pooled(path))
            hidden = hidden + path
        units: Tensor = self.units(hidden)
        return units


def _pooled(images: Tensor) -> Tensor:
    """Maximum of each window of ``POOLING`` x ``POOLING`` pixels, rows first: fewer comparisons."""
    half = POOLING // 2
    rows = functional.max_pool2d(images, (1, POOLING), 1, (0, half))
    return functional.max_pool2d(rows, (POOLING, 1), 1, (half, 0))


class _Units(nn.Module):
    """Residual units of two ELUs and convolutions without bias."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.ModuleList(_convolution(width, width, bias=False) for _ in range(2))
            for _ in range(count)
        )

    def forward(self, images: Tensor) -> Tensor:
        for unit in self.units:
            hidden = images
            assert isinstance(unit, nn.ModuleList)
            for convolution in unit:
                hidden = convolution(functional.elu(hidden))
            images = images + hidden
        return images


def _convolution(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)
