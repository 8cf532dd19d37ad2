"""The two networks of IDFR: input denoiser (ID) and feature restorer (FR)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING = 512
"""Width of the embeddings of VGG16 and ResNet18, and of the first and last layer of Table 7."""


class InputDenoiser(nn.Module):
    """Nine 3x3 convolutions on three resolutions (Table 6): 669,033 parameters in colour.

    Table 6 lists channels only. From `ID-FR/IDFR`: a stride of 2 in layers 3 and 5, bilinear
    upsampling; layer 6 reads layers 3 and 5, layer 8 reads layers 1 and 7. Every layer has batch
    normalisation and ReLU. The text names layer 2 instead of 1, which has as many channels.

    In evaluation mode the output is clamped to [0, 1]. In training a clamp would remove gradients.

    Args:
        channels: channels of the images.
        width: channels of the first layer; 32 in Table 6. The others grow with it.
        residual: ``none``: the ninth layer's output, as Table 6 lists it. ``signed``: the image
            plus the ninth convolution, without its batch normalisation and ReLU. ``positive``: the
            image plus the ninth layer's output, which can only brighten.
    """

    def __init__(self, channels: int, width: int = 32, residual: str = "none") -> None:
        super().__init__()
        self.residual = residual
        self.layer1 = _layer(channels, width)
        self.layer2 = _layer(width, width)
        self.layer3 = _layer(width, 2 * width, stride=2)
        self.layer4 = _layer(2 * width, 2 * width)
        self.layer5 = _layer(2 * width, 4 * width, stride=2)
        self.layer6 = _layer(6 * width, 6 * width)
        self.layer7 = _layer(6 * width, 2 * width)
        self.layer8 = _layer(3 * width, 3 * width)
        last = _layer(3 * width, channels)
        self.layer9 = last[0] if residual == "signed" else last

    def forward(self, images: Tensor) -> Tensor:
        first = self.layer1(images)
        third = self.layer3(self.layer2(first))
        fifth = self.layer5(self.layer4(third))
        seventh = self.layer7(self.layer6(_joined(third, fifth)))
        output = self.layer9(self.layer8(_joined(first, seventh)))
        if self.residual != "none":
            output = images + output
        return output if self.training else output.clamp(0.0, 1.0)


class FeatureRestorer(nn.Sequential):
    """Six linear layers with ReLU (Table 7): 337,184 parameters for embeddings of 512.

    The paper calls it a U-Net, but Table 7 has no skip connections.

    Args:
        embedding: width of the embeddings.
        width: units of the second layer; 256 in Table 7. The third has 1/2, the narrowest 1/8.
    """

    def __init__(self, embedding: int = EMBEDDING, width: int = 256) -> None:
        units = [embedding, width, width // 2, width // 8, width // 2, width, embedding]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(units):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers)


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _joined(skip: Tensor, deep: Tensor) -> Tensor:
    """``skip``, and ``deep`` upsampled to its size, as one map."""
    upsampled = functional.interpolate(deep, size=skip.shape[-2:], mode="bilinear")
    return torch.cat([skip, upsampled], dim=1)
