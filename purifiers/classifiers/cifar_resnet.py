"""ResNet for small images (He et al. 2016, section 4.2): three stages of basic blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torchvision.models.resnet import BasicBlock

from purifiers.classifiers._resnet import Resnet
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits, Rule


class CifarResnet(Resnet):
    """Conv 3x3, three stages of (depth - 2) / 6 basic blocks, average pooling, a linear layer.

    Shortcuts between stages are 1x1 convolutions, as in `bearpaw/pytorch-classification` and
    `locuslab/smoothing`; the paper pads with zeros. Depth 110 has 1,730,714 parameters for colour
    images and 10 classes (1.7 million in the paper), depth 62 has 952,986.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        depth: number of weighted layers, 6 n + 2; 110 in Cohen et al. 2019, 62 in Song et al. 2018.
        width: channels of the first stage; the others have 2 and 4 times as many. 16 in the paper.
        first_stride: stride of the first convolution; 1 in the paper. 2 is our choice for networks
            that must train on a processor.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: a depth that is not 6 n + 2.
    """

    traits = ClassifierTraits(
        version=1,
        budget=("depth", "width", "first_stride"),
        rules=(
            Rule(
                holds="depth >= 8 and (depth - 2) % 6 == 0",
                text="depth is {depth}: choose 8, 14, 20, ... (6 n + 2)",
            ),
        ),
    )
    BLOCK = BasicBlock

    TAPS: ClassVar[tuple[str, ...]] = ("stem", "stage1", "stage2", "stage3", "embedding")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        depth: Count = 110,
        width: Count = 16,
        first_stride: Count = 1,
    ) -> None:
        self.COUNTS = ((depth - 2) // 6,) * 3
        super().__init__(shape, classes, width=width, first_stride=first_stride)
