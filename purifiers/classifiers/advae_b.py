"""Classifier B for MNIST (Li et al. 2019, AdvAE, Table 2): dropout, then three convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class AdvaeB(Layered):
    """Dropout .2, conv 8x8 with stride 2, conv 6x6 with stride 2, conv 5x5, dropout .5, FC.

    710,218 parameters on MNIST. The first convolution is padded, the others are not, and initial
    weights are Keras's (`lihebi/AdvAE`; the paper specifies neither).

    Args:
        shape: (C, H, W) of the images, at least 27 x 27; 14 x 14 with ``first_stride`` 1.
        classes: number of classes.
        width: channels of the first convolution, half those of the others; 64 in the paper.
        first_stride: stride of the first convolution; 2 in the paper. 1 is our choice for smaller
            images.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: the images are too small.
    """

    traits = ClassifierTraits(version=1, budget=("width", "first_stride"))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3")

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: Count = 64, first_stride: Count = 2
    ) -> None:
        super().__init__(shape, classes)
        first = self.convolution(width, 8, stride=first_stride, same=True)
        self.conv1 = nn.Sequential(nn.Dropout(0.2), *first)
        self.conv2 = self.convolution(2 * width, 6, stride=2)
        self.conv3 = self.convolution(2 * width, 5, dropout=0.5)
        self.finish()
