"""Pre-activation residual network with bottlenecks (He et al. 2016b), Keras's CIFAR-10 example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from purifiers.classifiers._taps import tapped
from purifiers.core.component import Classifier
from purifiers.core.ranges import Count, Fraction
from purifiers.core.traits import ClassifierTraits, Rule

NORM_EPS = 1e-3  # Keras's default


class ResnetV2(Classifier):
    """ResNetV2-``depth``: conv 3x3, BN, ReLU, three stages of bottlenecks, BN, ReLU, mean, FC.

    Depth 29 has 843,786 weights and biases on CIFAR-10, without the running statistics of its batch
    normalisation. The AdvAE paper takes it from Keras's example `cifar10_resnet.py` (section 4.1,
    `lihebi/AdvAE`). The example also has biases in all convolutions, a shortcut from the input
    before its activation, He's truncated normal initial weights over fan-in, and batch
    normalisation with epsilon 1e-3. Its L2 penalty of 1e-4 is a weight decay of 2e-4 and part of
    the training.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        depth: 9 n + 2 for n bottlenecks per stage; 29 in the AdvAE paper.
        width: channels of the first convolution; the stages have 4, 8 and 16 times as many. 16 in
            Keras's example.
        first_stride: stride of the first stage; 1 in that example. 2 is our choice for networks
            that must train on a processor.
        norm_momentum: weight of a new batch in the running statistics; .01 is Keras's default
            (which calls it .99). Trainings of a few hundred steps need a larger one.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: ``depth`` is not of the form 9 n + 2.
    """

    traits = ClassifierTraits(
        version=1,
        budget=("depth", "width", "first_stride", "norm_momentum"),
        rules=(
            Rule(
                holds="depth >= 11 and (depth - 2) % 9 == 0",
                text="depth is {depth}, but must be 9 n + 2; choose 11, 20, 29, ...",
            ),
        ),
    )

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "stage1", "stage2", "stage3")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        depth: Count = 29,
        width: Count = 16,
        first_stride: Count = 1,
        norm_momentum: Fraction = 0.01,
    ) -> None:
        super().__init__(shape, classes)
        blocks = (depth - 2) // 9
        outputs = [4 * width, 8 * width, 16 * width]
        convolution = nn.Conv2d(self.shape[0], width, 3, padding=1)
        self.conv1 = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = _stage(width, width, outputs[0], blocks, first_stride, active=True)
        self.stage2 = _stage(outputs[0], outputs[0], outputs[1], blocks, 2)
        self.stage3 = _stage(outputs[1], outputs[1], outputs[2], blocks, 2)
        self.norm = nn.BatchNorm2d(outputs[2])
        self.head = nn.Linear(outputs[2], classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = NORM_EPS, norm_momentum
            if isinstance(module, nn.Conv2d | nn.Linear):
                _he_truncated(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        deepest = self.features(images, self.TAPS[-1:])[0]
        return self.head(torch.relu(self.norm(deepest)).mean(dim=(2, 3)))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, "resnet_v2", images, taps)


def _he_truncated(weight: Tensor) -> None:
    """Draw Keras's ``he_normal``: variance 2 / fan-in, truncated at two standard deviations."""
    deviation = (2.0 / weight[0].numel()) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def _stage(
    inputs: int, inner: int, outputs: int, blocks: int, stride: int, *, active: bool = False
) -> nn.Sequential:
    first = _Bottleneck(inputs, inner, outputs, stride, active=active, projects=True)
    rest = (_Bottleneck(outputs, inner, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class _Bottleneck(nn.Module):
    """BN-ReLU-conv three times: 1x1 with the stride, 3x3, 1x1; added to the shortcut.

    Args:
        active: the input is already activated, so the first BN-ReLU is omitted.
        projects: the shortcut is a 1x1 convolution of the input.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int,
        *,
        active: bool = False,
        projects: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = None if active else nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride=stride)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride) if projects else None

    def forward(self, hidden: Tensor) -> Tensor:
        active = hidden if self.norm1 is None else torch.relu(self.norm1(hidden))
        inner = torch.relu(self.norm2(self.conv1(active)))
        inner = torch.relu(self.norm3(self.conv2(inner)))
        shortcut = hidden if self.shortcut is None else self.shortcut(hidden)
        return shortcut + self.conv3(inner)
