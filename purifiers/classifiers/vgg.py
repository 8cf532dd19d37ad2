"""VGG with batch normalisation (Simonyan and Zisserman 2015), in its form for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from purifiers.classifiers._taps import tapped
from purifiers.core.component import Classifier
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits

# Convolutions per stage: Simonyan and Zisserman, Table 1, columns A, B, D and E.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Vgg(Classifier):
    """VGG-``depth``-BN: five stages of 3x3 convolutions with BN and ReLU, one linear layer.

    Each stage ends with 2x2 max-pooling; average pooling precedes the linear layer. VGG-19-BN for
    colour images and 10 classes has 20,040,522 parameters. CIFAR ports have one linear layer
    instead of three (`kuangliu/pytorch-cifar`). Convolutions have biases, as there and in
    torchvision. Pooling keeps an odd last pixel, so that any image size is possible; at 32x32 no
    size is odd. Inputs are not normalised.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        depth: number of layers with weights, as the paper counts them: 11, 13, 16 or 19.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        first_stride: stride of the first convolution; 1 in the paper. 2 is our choice for networks
            that must train on a processor.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: another depth.
    """

    traits = ClassifierTraits(version=1, budget=("depth", "width", "first_stride"))

    TAPS: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4", "stage5")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        depth: Literal[11, 13, 16, 19] = 19,
        width: Count = 64,
        first_stride: Count = 1,
    ) -> None:
        super().__init__(shape, classes)
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        self.channels = dict(zip(self.TAPS, widths, strict=True))
        inputs, stride = self.shape[0], first_stride
        for name, outputs, count in zip(self.TAPS, widths, STAGES[depth], strict=True):
            setattr(self, name, _stage(inputs, outputs, count, stride))
            inputs, stride = outputs, 1
        self.head = nn.Linear(inputs, classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw He's weights over fan-out for convolutions, and zero biases, as in torchvision."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images, self.TAPS[-1:])[0].mean(dim=(2, 3)))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped(self, "vgg", images, taps)


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position in range(count):
        step = stride if position == 0 else 1
        layers += [
            nn.Conv2d(inputs if position == 0 else outputs, outputs, 3, stride=step, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True))
