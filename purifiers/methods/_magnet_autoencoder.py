"""Auto-encoders of MagNet: 3x3 convolutions of three channels, with sigmoids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.methods._autoencoder import Autoencoder, UpConvolution, start_as_keras

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "relu": torch.relu}


class PooledAutoencoder(Autoencoder):
    """AE-I: conv, average pooling by 2, conv; conv, nearest upsampling by 2, conv; output conv.

    310 parameters with 1 channel and width 3 (Meng & Chen 2017, MNIST's "detector I and reformer";
    `Trevillie/MagNet`, structure ``[3, "average", 3]``, whose numbers are widths).

    Args:
        channels: channels of the images.
        width: channels of all inner layers; 3 in the paper.
        activation: of the inner layers, one of ``ACTIVATIONS``; ``sigmoid`` in the paper.
    """

    reduction = 2

    def __init__(self, channels: int, width: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.encoder1 = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder2 = nn.Conv2d(width, width, 3, padding=1)
        self.decoder1 = nn.Conv2d(width, width, 3, padding=1)
        self.decoder2 = UpConvolution(width, width)
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        start_as_keras(self)

    def decode(self, images: Tensor) -> Tensor:
        hidden = functional.avg_pool2d(self.activation(self.encoder1(images)), 2)
        hidden = self.activation(self.decoder1(self.activation(self.encoder2(hidden))))
        return self.output(self.activation(self.decoder2(hidden)))


class FlatAutoencoder(Autoencoder):
    """AE-II: conv, conv, output conv, all at full size.

    142 parameters with 1 channel and width 3 (MNIST's "detector II", and the one auto-encoder of
    CIFAR-10; structure ``[3]``). Arguments as for :class:`PooledAutoencoder`.
    """

    reduction = 1

    def __init__(self, channels: int, width: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.encoder = nn.Conv2d(channels, width, 3, padding=1)
        self.decoder = nn.Conv2d(width, width, 3, padding=1)
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        start_as_keras(self)

    def decode(self, images: Tensor) -> Tensor:
        return self.output(self.activation(self.decoder(self.activation(self.encoder(images)))))
