"""Convolutional network for FashionMNIST (Yoon et al. 2021, ADP, Figure 6b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class AdpCnn(Layered):
    """Conv 5x5 with 2x2 max-pooling twice, FC 1024, each with ReLU, and a linear layer.

    3,274,634 parameters on FashionMNIST. Stride 1 and padding 2: appendix A.4. The numbers of
    channels and units are those of `jmyoon1/adp`; the layers of the figure are lost.
    Initial weights are PyTorch's.

    Args:
        shape: (C, H, W) of the images, at least 4 x 4.
        classes: number of classes.
        width: channels of the first convolution, half those of the second; 32 upstream.
        units: of the fully connected layer; 1024 upstream.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: the images are too small.
    """

    traits = ClassifierTraits(version=1, budget=("width", "units"))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense1")

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: Count = 32, units: Count = 1024
    ) -> None:
        super().__init__(shape, classes)
        self.conv1 = self.convolution(width, 5, same=True, pool=True)
        self.conv2 = self.convolution(2 * width, 5, same=True, pool=True)
        self.dense1 = self.dense(units)
        self.head = nn.Linear(units, classes)
