"""Classifier X for MNIST (Li et al. 2019, AdvAE, Table 2): four convolutions, two dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class AdvaeX(Layered):
    """Conv 3x3 twice, pooling, conv 3x3 twice, pooling, FC 200, dropout .5, FC 200, FC.

    312,202 parameters on MNIST. Convolutions are not padded, and initial weights are Keras's
    (`lihebi/AdvAE`; the paper specifies neither). "FC(200,10)" of the table is FC 200 and FC 10.

    Args:
        shape: (C, H, W) of the images, at least 16 x 16.
        classes: number of classes.
        width: channels of the first two convolutions, half those of the others; 32 in the paper.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: the images are too small.
    """

    traits = ClassifierTraits(version=1, budget=("width",))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3", "conv4", "dense1", "dense2")

    def __init__(self, shape: Sequence[int], classes: int, *, width: Count = 32) -> None:
        super().__init__(shape, classes)
        self.conv1 = self.convolution(width, 3)
        self.conv2 = self.convolution(width, 3, pool=True)
        self.conv3 = self.convolution(2 * width, 3)
        self.conv4 = self.convolution(2 * width, 3, pool=True)
        self.dense1 = self.dense(200, dropout=0.5)
        self.dense2 = self.dense(200)
        self.finish()
