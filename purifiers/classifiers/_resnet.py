"""Residual networks (He et al. 2016) of torchvision's blocks, with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from purifiers.classifiers._taps import tapped
from purifiers.core.choices import Stem
from purifiers.core.component import Classifier
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class Resnet(Classifier):
    """A stem, four stages of residual blocks, average pooling (the tap ``embedding``), a head.

    A subclass sets ``BLOCK`` and ``COUNTS``. Inputs are not normalised.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: channels of the first stage; the others have 2, 4 and 8 times as many, blocks of
            three convolutions 4 times that.
        stem: ``small``: conv 3x3, as CIFAR ports have it (`kuangliu/pytorch-cifar`). ``imagenet``:
            conv 7x7 with a stride of 2 and max-pooling, as the paper.
        first_stride: stride of the small stem; 1 in the ports. 2 is our choice for networks that
            must train on a processor.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: another stem.
    """

    traits = ClassifierTraits(version=1, budget=("width", "first_stride"))

    TAPS: ClassVar[tuple[str, ...]] = (
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "embedding",
    )
    BLOCK: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock
    COUNTS: tuple[int, ...] = (1, 1, 1, 1)  # blocks of each stage

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: Count = 64,
        stem: Stem = "small",
        first_stride: Count = 1,
    ) -> None:
        super().__init__(shape, classes)
        self.stem = _stem(self.shape[0], width, stem, first_stride)
        inputs = width
        for number, count in enumerate(self.COUNTS):
            planes, stride = width * 2**number, 1 if number == 0 else 2
            setattr(self, f"stage{number + 1}", self._stage(inputs, planes, count, stride))
            inputs = planes * self.BLOCK.expansion
        self.embedding = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():  # as torchvision
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, inputs: int, planes: int, count: int, stride: int) -> nn.Sequential:
        outputs = planes * self.BLOCK.expansion
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        first = self.BLOCK(inputs, planes, stride, shortcut)
        return nn.Sequential(first, *(self.BLOCK(outputs, planes) for _ in range(count - 1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images, ("embedding",))[0].flatten(1))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, type(self).__name__.lower(), images, taps)


def _stem(channels: int, width: int, stem: str, stride: int) -> nn.Sequential:
    if stem == "small":
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
    convolution = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    pooling = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), pooling)
