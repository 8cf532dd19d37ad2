"""Sequential networks with Keras's padding and initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from purifiers.classifiers._taps import tapped
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError


class Layered(Classifier):
    """A classifier that applies the layers named in ``TAPS``, then ``head``.

    A subclass adds its layers from shallow to deep with :meth:`convolution` and :meth:`dense`, then
    calls :meth:`finish`. A representation is the output of a layer; that of a dense layer has the
    shape (n, units, 1, 1).
    """

    head: nn.Module

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__(shape, classes)
        self._reached = self.shape  # input shape of the next layer

    def forward(self, images: Tensor) -> Tensor:
        hidden = images
        for name in self.TAPS:
            hidden = getattr(self, name)(hidden)
        return self.head(hidden.flatten(1))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        outputs = tapped(self, type(self).__name__, images, taps)
        return [hidden if hidden.dim() == 4 else hidden[:, :, None, None] for hidden in outputs]

    def convolution(
        self,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        same: bool = False,
        pool: bool = False,
        dropout: float = 0.0,
    ) -> nn.Sequential:
        """A convolution and ReLU, optionally followed by 2x2 max-pooling and by dropout.

        Args:
            same: pad with zeros to an output of ceil(size / stride) pixels, an odd one of them at
                the bottom and the right (TensorFlow's SAME); else no padding (VALID).

        Raises:
            UserError: the output would have no pixel.
        """
        inputs, height, width = self._reached
        rows, columns = (_padding(n, kernel, stride) if same else (0, 0) for n in (height, width))
        height = (height + sum(rows) - kernel) // stride + 1
        width = (width + sum(columns) - kernel) // stride + 1
        if pool:
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise UserError(
                f"{type(self).__name__}: images of {_times(self.shape)} are too small, only "
                f"{_times(self._reached[1:])} pixels reach a {kernel}x{kernel} convolution"
                f"{' with pooling' if pool else ''}; use larger images"
            )
        self._reached = (channels, height, width)
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels, kernel, stride), nn.ReLU()]
        if any(rows + columns):
            layers.insert(0, nn.ZeroPad2d((*columns, *rows)))
        if pool:
            layers.append(nn.MaxPool2d(2))
        if dropout:
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers)

    def dense(self, units: int, *, dropout: float = 0.0) -> nn.Sequential:
        """A fully connected layer and ReLU, optionally followed by dropout."""
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(math.prod(self._reached), units),
            nn.ReLU(),
        ]
        self._reached = (units,)
        if dropout:
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers)

    def finish(self) -> None:
        """Add the head and draw the initial weights: Glorot uniform, biases zero."""
        self.head = nn.Linear(math.prod(self._reached), self.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after ``size`` pixels for TensorFlow's SAME."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
