"""Auto-encoder of AdvAE for MNIST, and the layers that it shares with the U-Nets."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.convolution import convolve

NORM_EPS = 1e-3  # Keras's default


class Autoencoder(nn.Module):
    """Map images to images of the same shape, with a sigmoid at the end.

    A subclass implements :meth:`decode`. Sides that are not multiples of ``reduction`` are padded
    with zeros at the bottom and the right, and the output is cropped (our choice; MNIST, 16x16
    digits and CIFAR-10 need no padding).

    Shapes: images float32 (n, C, H, W) in [0, 1] to the same.
    """

    reduction: ClassVar[int]

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.decoded(images))

    def decoded(self, images: Tensor) -> Tensor:
        """Logit of each output pixel, (n, C, H, W)."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.reduction, -width % self.reduction
        padded = functional.pad(images, (0, right, 0, bottom)) if bottom or right else images
        logits = self.decode(padded.contiguous(memory_format=torch.channels_last))
        return logits[..., :height, :width]

    def decode(self, images: Tensor) -> Tensor:
        """Map images whose sides are multiples of ``reduction`` to the logits of their pixels."""
        raise TypeError(f"{type(self).__name__} does not implement decode")


class MnistAutoencoder(Autoencoder):
    """(Conv 3x3, BN, ReLU, max-pool) twice, (conv 3x3, ReLU, nearest-up) twice, conv 3x3, sigmoid.

    AdvAE, section 4.1: 28,481 parameters with 1 channel and width 32. The paper gives the last
    convolution 3 channels, which is a slip on MNIST; upstream (`lihebi/AdvAE`) uses those of the
    image.

    Args:
        channels: channels of the images.
        width: channels of all inner layers.
        norm_momentum: weight of a new batch in the running statistics.
    """

    reduction = 4

    def __init__(self, channels: int, width: int, norm_momentum: float) -> None:
        super().__init__()
        self.encoder1 = NormedConvolution(channels, width, norm_momentum)
        self.encoder2 = NormedConvolution(width, width, norm_momentum)
        self.decoder1 = nn.Conv2d(width, width, 3, padding=1)
        self.decoder2 = UpConvolution(width, width)
        self.output = UpConvolution(width, channels)
        start_as_keras(self)

    def decode(self, images: Tensor) -> Tensor:
        # max-pooling before ReLU: the same numbers at a quarter of the cost
        hidden = torch.relu_(functional.max_pool2d(self.encoder1(images), 2))
        hidden = torch.relu_(functional.max_pool2d(self.encoder2(hidden), 2))
        hidden = torch.relu_(self.decoder2(torch.relu_(self.decoder1(hidden))))
        return self.output(hidden)


class NormedConvolution(nn.Module):
    """A 3x3 convolution with batch normalisation.

    In evaluation mode both are fused into one convolution. This is exact up to rounding and saves
    memory traffic in every step of an attack.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm_momentum: float,
        *,
        stride: int = 1,
        bias: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(outputs, eps=norm_eps, momentum=norm_momentum)

    def forward(self, hidden: Tensor) -> Tensor:
        convolution, norm = self.convolution, self.norm
        weight, bias = convolution.weight, convolution.bias
        if self.training:
            return norm(convolve(hidden, weight, bias, convolution.stride, convolution.padding))
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if bias is not None:
            shift = shift + bias * scale
        weight = weight * scale[:, None, None, None]
        return convolve(hidden, weight, shift, convolution.stride, convolution.padding)


class UpConvolution(nn.Conv2d):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, as one transposed convolution.

    An output pixel depends on at most 2x2 different pixels, so 16 products replace 36, and the
    upsampled image is never stored. Exact up to rounding.

    Shapes: (n, inputs, H, W) to (n, outputs, 2 H, 2 W).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        mirrored = self.weight.flip(2, 3).transpose(0, 1)
        paddings = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
        kernel = torch.stack([functional.pad(mirrored, padding) for padding in paddings]).sum(dim=0)
        if self.out_channels > 1:
            return functional.conv_transpose2d(hidden, kernel, self.bias, stride=2, padding=1)
        # for a single output channel a matrix product is faster than a convolution
        count, inputs, height, width = hidden.shape
        pixels = hidden.permute(0, 2, 3, 1).reshape(count, height * width, inputs)
        parts = (pixels @ kernel.flatten(1)).transpose(1, 2)
        size = (2 * height, 2 * width)
        summed = functional.fold(parts, size, kernel_size=4, padding=1, stride=2)
        return summed if self.bias is None else summed + self.bias[:, None, None]


def start_as_keras(module: nn.Module) -> None:
    """Draw initial weights as Keras, upstream's library, does: Glorot uniform, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
