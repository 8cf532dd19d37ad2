"""Fully connected network for MNIST (Yoon et al. 2021, ADP, Figure 6a): two hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Several
from purifiers.core.traits import ClassifierTraits


class Mlp(Layered):
    """FC ``width``, FC ``width / 2``, each with ReLU, and a linear layer for the labels.

    235,146 parameters on MNIST. The caption of Figure 6a is lost; the widths 256 and 128 are those
    of `jmyoon1/adp`. ReLU is our choice. Initial weights are PyTorch's.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: units of the first layer, twice those of the second.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).
    """

    traits = ClassifierTraits(version=1, budget=("width",))

    TAPS: ClassVar[tuple[str, ...]] = ("dense1", "dense2")

    def __init__(self, shape: Sequence[int], classes: int, *, width: Several = 256) -> None:
        super().__init__(shape, classes)
        self.dense1 = self.dense(width)
        self.dense2 = self.dense(width // 2)
        self.head = nn.Linear(width // 2, classes)
