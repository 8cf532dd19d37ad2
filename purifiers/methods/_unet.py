"""U-Nets that purify: two readings of AdvAE's, and the denoiser of HGD."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.methods._autoencoder import Autoencoder, NormedConvolution, start_as_keras

NORM_MOMENTUM = 0.1  # of DUNET, PyTorch's default
LEVELS = (1, 2, 4, 8, 16)  # channels per level over the width: 32, 64, 128, 256, 512 in AdvAE


class Unet(Autoencoder):
    """The U-Net of AdvAE's code: two convolutions per level, sigmoid(x + output).

    `lihebi/AdvAE` (May 2019): conv 3x3 and ReLU twice per level, max-pooling in between, transposed
    convolutions 2x2 on the way up, concatenation. 7,760,931 parameters with 3 channels and width
    32. The image is added before the sigmoid, not after it: to return an image x unchanged, the
    last layer must output logit(x) - x.

    Args:
        channels: channels of the images.
        width: channels of the first level; 32 in the paper.
    """

    reduction = 16

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [width * level for level in LEVELS]
        down = pairwise([channels, *sizes])
        self.down = nn.ModuleList(_twice(inputs, outputs) for inputs, outputs in down)
        up = list(pairwise(sizes[::-1]))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in up)
        self.up = nn.ModuleList(_twice(2 * outputs, outputs) for _, outputs in up)
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        start_as_keras(self)

    def decode(self, images: Tensor) -> Tensor:
        hidden, skips = images, list[Tensor]()
        for level in self.down:
            hidden = level(functional.max_pool2d(hidden, 2) if skips else hidden)
            skips.append(hidden)
        for upsample, level, skip in zip(self.raise_, self.up, skips[-2::-1], strict=True):
            hidden = level(torch.cat([upsample(hidden), skip], dim=1))
        return images + self.output(hidden)


class PaperUnet(Autoencoder):
    """The U-Net of AdvAE's text (section 4.1): one conv 3x3 per level, no image in the sum.

    5 convolutions of 32 to 512 channels down, 5 of 256 to 3 up, ReLU, sigmoid. The text names no
    pooling or upsampling; max-pooling and nearest-neighbour upsampling, as in the MNIST
    auto-encoder, are our choice.

    Args:
        channels: channels of the images.
        width: channels of the first level; 32 in the paper.
    """

    reduction = 16

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [width * level for level in LEVELS]
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([channels, *sizes])
        )
        self.up = nn.ModuleList(nn.Conv2d(a + b, b, 3, padding=1) for a, b in pairwise(sizes[::-1]))
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        start_as_keras(self)

    def decode(self, images: Tensor) -> Tensor:
        hidden, skips = images, list[Tensor]()
        for level in self.down:
            hidden = torch.relu(level(functional.max_pool2d(hidden, 2) if skips else hidden))
            skips.append(hidden)
        for level, skip in zip(self.up, skips[-2::-1], strict=True):
            upsampled = functional.interpolate(hidden, scale_factor=2)
            hidden = torch.relu(level(torch.cat([upsampled, skip], dim=1)))
        return self.output(hidden)


class DenoisingUnet(Autoencoder):
    """DUNET, the denoiser of HGD (Liao et al. 2018, section 3.3): x + output.

    `lfz/Guided-Denoise`: conv 3x3, BN, ReLU; (64, 128, 256, 256, 256) x (2, 3, 3, 3, 3) down, each
    level but the first with a stride of 2; (256, 256, 128, 64) x (3, 3, 3, 2) up, after bilinear
    upsampling and concatenation; conv 1x1. 11,033,984 parameters with 3 channels and width 32.
    Initial weights and the momentum of batch normalisation (.1) are PyTorch's. Upsampling maps
    corners to corners, as PyTorch did by default when upstream was written (before 0.4).

    The output is clamped to [0, 1], except in training, where a clamp would remove gradients (our
    choice; upstream never clamps).

    Args:
        channels: channels of the images.
        width: half the channels of the first level; 32 upstream.
    """

    reduction = 16

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [2 * width, 4 * width, 8 * width, 8 * width, 8 * width]

        def level(inputs: int, outputs: int, count: int, stride: int = 1) -> nn.Sequential:
            layers: list[nn.Module] = []
            for position in range(count):
                step = stride if position == 0 else 1
                convolution = NormedConvolution(
                    inputs, outputs, NORM_MOMENTUM, stride=step, bias=False, norm_eps=1e-5
                )
                layers += [convolution, nn.ReLU()]
                inputs = outputs
            return nn.Sequential(*layers)

        self.down = nn.ModuleList([level(channels, sizes[0], 2)])
        self.down.extend(level(a, b, 3, stride=2) for a, b in pairwise(sizes))
        counts = (3, 3, 3, 2)
        up = zip(pairwise(sizes[::-1]), counts, strict=True)
        self.up = nn.ModuleList(level(a + b, b, count) for (a, b), count in up)
        self.output = nn.Conv2d(sizes[0], channels, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        purified = images + self.decoded(images)
        return purified if self.training else purified.clamp(0.0, 1.0)

    def decode(self, images: Tensor) -> Tensor:
        hidden, skips = images, list[Tensor]()
        for level in self.down:
            hidden = level(hidden)
            skips.append(hidden)
        for level, skip in zip(self.up, skips[-2::-1], strict=True):
            upsampled = functional.interpolate(
                hidden, size=skip.shape[-2:], mode="bilinear", align_corners=True
            )
            hidden = level(torch.cat([upsampled, skip], dim=1))
        return self.output(hidden)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )
