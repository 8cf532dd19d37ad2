"""Classifier A for MNIST (Li et al. 2019, AdvAE, Table 2): two 5x5 convolutions, a dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class AdvaeA(Layered):
    """Conv 5x5, conv 5x5 with stride 2, dropout .25, FC 128, dropout .5, FC.

    1,285,194 parameters on MNIST. The first convolution is padded, the second is not, and initial
    weights are Keras's (`lihebi/AdvAE`; the paper specifies neither).

    Args:
        shape: (C, H, W) of the images, at least 5 x 5.
        classes: number of classes.
        width: channels of both convolutions; 64 in the paper.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: the images are too small.
    """

    traits = ClassifierTraits(version=1, budget=("width",))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense1")

    def __init__(self, shape: Sequence[int], classes: int, *, width: Count = 64) -> None:
        super().__init__(shape, classes)
        self.conv1 = self.convolution(width, 5, same=True)
        self.conv2 = self.convolution(width, 5, stride=2, dropout=0.25)
        self.dense1 = self.dense(128, dropout=0.5)
        self.finish()
