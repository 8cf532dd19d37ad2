"""Template of a classifier; replace this line by: architecture, authors, year.

Copy this file to ``<name>.py`` and rename the class to the CamelCase of ``<name>``. No list has to
be edited. The first line of the module docstring is the classifier's summary (15 to 120
characters).

The contract tests require of every classifier:

- finite float32 logits (n, classes), independent of the rest of the batch;
- ``features`` of every tap that run nothing deeper, and a suggestion for an unknown tap;
- equal logits after saving and loading, and a lower loss after a few training steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class Template(Classifier):
    """Two 3x3 convolutions with batch normalisation, average pooling, one linear layer.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        width: channels of the first convolution, half those of the second; our choice (name the
            source of each default).

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).
    """

    traits = ClassifierTraits(
        version=1,  # raise it whenever logits or initial weights change; results are recomputed
        budget=("width",),  # parameters that a reduced scale may change: sizes only
    )

    # names of the inner representations, shallow to deep
    TAPS: ClassVar[tuple[str, ...]] = ("early", "late")

    def __init__(self, shape: Sequence[int], classes: int, *, width: Count = 16) -> None:
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
        outputs = {"early": self.early(images)}
        if "late" in taps:  # run nothing deeper than the requested taps
            outputs["late"] = self.late(torch.relu(outputs["early"]))
        return [outputs[tap] for tap in taps]


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
