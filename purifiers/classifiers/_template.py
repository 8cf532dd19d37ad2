"""Copy this file to add a classifier; its first line says what it is and who proposed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.traits import ClassifierTraits


class Template(Classifier):
    """Two 3x3 convolutions with batch normalisation, average pooling, one linear layer.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: channels of the first convolution, half those of the second; our choice.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).
    """

    traits = ClassifierTraits(
        version=1,  # raise it when the same declaration gives other logits or initial weights
        budget=("width",),  # parameters that a reduced scale may change: sizes only
    )

    TAPS: ClassVar[tuple[str, ...]] = ("early", "late")  # shallow to deep

    def __init__(self, shape: Sequence[int], classes: int, *, width: int = 16) -> None:
        super().__init__(shape, classes)
        self.early = _convolution(self.shape[0], width, stride=1)
        self.late = _convolution(width, 2 * width, stride=2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(images, ("late",))[0]).mean(dim=(2, 3)))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        for tap in taps:
            if tap not in self.TAPS:
                raise UserError(f"template has no tap {tap!r}{did_you_mean(tap, self.TAPS)}")
        found = {"early": self.early(images)}
        if "late" in taps:  # nothing deeper than what was asked for is computed
            found["late"] = self.late(torch.relu(found["early"]))
        return [found[tap] for tap in taps]


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
