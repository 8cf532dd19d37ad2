"""Inception-v3 (Szegedy et al. 2016) of torchvision's blocks, with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models import inception as blocks

from purifiers.classifiers._taps import tapped
from purifiers.core.choices import Stem
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.ranges import Count, Share
from purifiers.core.traits import ClassifierTraits, Rule

WIDTH = 32  # channels of the first convolution of the paper
SMALLEST = {"small": 7, "imagenet": 75}  # sides that leave a pixel after the last pooling


class InceptionV3(Classifier):
    """A stem of five convolutions, eleven Inception blocks, average pooling, dropout, a head.

    23,834,568 parameters for colour images and 1000 classes; embeddings of 2048. Torchvision's
    auxiliary classifier is left out. Inputs are not normalised.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: channels of the first convolution, an even number; all others are in proportion.
        stem: ``small``: no stride, pooling or loss of border pixels before the first block, as
            CIFAR ports have it (`weiaicunzai/pytorch-cifar100`). ``imagenet``: as the paper.
        first_stride: stride of the first convolution of the small stem; 1 in the port. 2 is our
            choice for networks that must train on a processor.
        dropout: of the embedding in training; torchvision's default.

    Initial weights are He's over fan-out; torchvision's are truncated normal.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: another stem, an odd width, or images that are too small.
    """

    traits = ClassifierTraits(
        version=1,
        budget=("width", "first_stride"),
        rules=(
            Rule(
                holds="width % 2 == 0",
                text=(
                    "width is {width}, which gives some blocks half a channel: choose an even "
                    "number"
                ),
            ),
        ),
    )

    TAPS: ClassVar[tuple[str, ...]] = ("stem", "stage1", "stage2", "stage3", "embedding")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: Count = 32,
        stem: Stem = "small",
        first_stride: Count = 1,
        dropout: Share = 0.5,
    ) -> None:
        super().__init__(shape, classes)
        side = min(self.shape[1:])
        reached = -(-side // first_stride) if stem == "small" else side
        if reached < SMALLEST[stem]:
            raise UserError(
                f"inception_v3: images of side {side} are too small for stem {stem!r} with "
                f"first_stride {first_stride}: it needs at least "
                f"{SMALLEST[stem] * (first_stride if stem == 'small' else 1)} pixels"
            )

        def scaled(channels: int) -> int:
            return channels * width // WIDTH

        def convolution(inputs: int, outputs: int, **options: Any) -> nn.Module:
            return blocks.BasicConv2d(scaled(inputs), scaled(outputs), **options)

        small = stem == "small"
        padding = 1 if small else 0
        pooling = [] if small else [nn.MaxPool2d(3, stride=2)]
        first = blocks.BasicConv2d(
            self.shape[0],
            width,
            kernel_size=3,
            stride=first_stride if small else 2,
            padding=padding,
        )
        self.stem = nn.Sequential(
            first,
            convolution(32, 32, kernel_size=3, padding=padding),
            convolution(32, 64, kernel_size=3, padding=1),
            *pooling,
            convolution(64, 80, kernel_size=1),
            convolution(80, 192, kernel_size=3, padding=padding),
            *pooling,
        )
        self.stage1 = nn.Sequential(
            blocks.InceptionA(192, 32, conv_block=convolution),
            blocks.InceptionA(256, 64, conv_block=convolution),
            blocks.InceptionA(288, 64, conv_block=convolution),
        )
        self.stage2 = nn.Sequential(
            blocks.InceptionB(288, conv_block=convolution),
            *(blocks.InceptionC(768, n, conv_block=convolution) for n in (128, 160, 160, 192)),
        )
        self.stage3 = nn.Sequential(
            blocks.InceptionD(768, conv_block=convolution),
            blocks.InceptionE(1280, conv_block=convolution),
            blocks.InceptionE(2048, conv_block=convolution),
        )
        self.embedding = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(scaled(2048), classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        embedding = self.features(images, ("embedding",))[0].flatten(1)
        return self.head(self.dropout(embedding))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, "inception_v3", images, taps)
