"""Classifier D for MNIST (Li et al. 2019, AdvAE, Table 2): two dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from purifiers.classifiers._layered import Layered
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class AdvaeD(Layered):
    """FC 200, dropout .5, FC 200, dropout .5, FC.

    199,210 parameters on MNIST. Initial weights are Keras's (`lihebi/AdvAE`; the paper specifies
    none).

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: units of both hidden layers; 200 in the paper.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).
    """

    traits = ClassifierTraits(version=1, budget=("width",))

    TAPS: ClassVar[tuple[str, ...]] = ("dense1", "dense2")

    def __init__(self, shape: Sequence[int], classes: int, *, width: Count = 200) -> None:
        super().__init__(shape, classes)
        self.dense1 = self.dense(width, dropout=0.5)
        self.dense2 = self.dense(width, dropout=0.5)
        self.finish()
