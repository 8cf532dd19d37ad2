"""SOAP's CIFAR classifier (Shi et al. 2021): a small residual network with a rotation head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from purifiers.classifiers._taps import tapped
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.ranges import Count
from purifiers.core.self_supervision import ROTATIONS
from purifiers.core.traits import ClassifierTraits


class SoapResnet(Classifier):
    """Conv 3x3, three stages of two basic blocks, average pooling, a linear layer for the labels.

    For rotation, a second linear layer predicts the four rotations. `Mishne-Lab/SOAP` calls the
    network ResNet-18 and builds no fourth stage; all its convolutions have biases. 175,818
    parameters on CIFAR-10, 176,078 with the second head. Upstream normalises the input with the
    data set's moments; this network does not, like the suite's others.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        task: ``rotation``, or ``label_consistency``, which needs no second head; see
            :class:`purifiers.core.self_supervision.Joint`.
        width: channels of the first stage; the others have 2 and 4 times as many. 16 upstream.
        first_stride: stride of the first stage; 1 upstream. 2 is our choice for networks that must
            train on a processor.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: another task.
    """

    traits = ClassifierTraits(version=1, budget=("width", "first_stride"))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "stage1", "stage2", "stage3")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        task: Literal["label_consistency", "rotation"] = "label_consistency",
        width: Count = 16,
        first_stride: Count = 1,
    ) -> None:
        super().__init__(shape, classes)
        self.task = task
        self.conv1 = nn.Sequential(
            nn.Conv2d(self.shape[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = _stage(width, width, first_stride)
        self.stage2 = _stage(width, 2 * width, 2)
        self.stage3 = _stage(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, classes)
        if task == "rotation":
            self.rotation = nn.Linear(4 * width, ROTATIONS)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self._pooled(images))

    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes), and logits (n, 4) of the rotations.

        Raises:
            UserError: the network was built without its second head.
        """
        if self.task != "rotation":
            raise UserError(
                f"soap_resnet: task is {self.task!r}, for which there is no rotation head; "
                "set task to 'rotation'"
            )
        pooled = self._pooled(images)
        return self.head(pooled), self.rotation(pooled)

    def _pooled(self, images: Tensor) -> Tensor:
        return self.features(images, ("stage3",))[0].mean(dim=(2, 3))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, "soap_resnet", images, taps)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), _Block(outputs, outputs, 1))


class _Block(nn.Module):
    """Conv-BN-ReLU-conv-BN, added to the shortcut, then ReLU.

    Where the shape changes, the shortcut is a 1x1 convolution with BN.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, hidden: Tensor) -> Tensor:
        shortcut = hidden if self.shortcut is None else self.shortcut(hidden)
        active = torch.relu(self.norm1(self.conv1(hidden)))
        return torch.relu(shortcut + self.norm2(self.conv2(active)))
