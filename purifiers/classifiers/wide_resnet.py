"""Pre-activation wide residual network (Zagoruyko and Komodakis 2016) of adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from purifiers.classifiers._taps import tapped
from purifiers.core.component import Classifier
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits, Rule


class WideResnet(Classifier):
    """WRN-``depth``-``widen_factor``: a 3x3 convolution, three stages, BN-ReLU, average pooling.

    WRN-34-10 with 10 classes has 46,160,474 parameters (as in `yaodongyu/TRADES`). Inputs are
    not normalised (`yelobean/AIDPurifier`).

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        depth: 6 n + 4 for n residual blocks per stage; 34 in the AID-Purifier paper, section 4.
        widen_factor: width of the stages over 16, 32, 64; 10 in that paper.
        first_stride: stride of the first stage; 1 in the papers. 2 is our choice for networks
            that must train on a processor.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: ``depth`` is not of the form 6 n + 4.
    """

    traits = ClassifierTraits(
        version=1,
        budget=("depth", "widen_factor", "first_stride"),
        rules=(
            Rule(
                holds="depth >= 10 and (depth - 4) % 6 == 0",
                text="depth is {depth}, but must be 6 n + 4; choose 10, 16, 22, ...",
            ),
        ),
    )

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "stage1", "stage2", "stage3")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        depth: Count = 34,
        widen_factor: Count = 10,
        first_stride: Count = 1,
    ) -> None:
        super().__init__(shape, classes)
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.channels = dict(zip(self.TAPS, widths, strict=True))
        self.conv1 = nn.Conv2d(self.shape[0], 16, 3, padding=1, bias=False)
        strides = (first_stride, 2, 2)
        self.stage1, self.stage2, self.stage3 = (
            _stage(widths[i], widths[i + 1], blocks, strides[i]) for i in range(3)
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw He's initial weights over fan-out for convolutions; zero bias in the head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        deepest = self.features(images, self.TAPS[-1:])[0]
        return self.head(torch.relu(self.norm(deepest)).mean(dim=(2, 3)))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, "wide_resnet", images, taps)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """BN-ReLU-conv twice, added to the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        active = torch.relu(self.norm1(hidden))
        shortcut = hidden if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(torch.relu(self.norm2(self.conv1(active))))
