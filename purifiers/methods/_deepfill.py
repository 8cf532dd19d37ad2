"""Inpainting networks of AToP: those of DeepFillv2 (Yu et al. 2019), and their hinge losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from purifiers.methods._contextual_attention import attend

DILATIONS = (2, 4, 8, 16)
"""Of the layers at the lowest resolution (`glin2022/atop`, as all sizes here)."""
SLOPE = 0.2
KERNEL = 5
"""Side of the discriminator's kernels."""
GAIN = 2.2
"""Standard deviation of a gated layer's initial weights, times the root of its inputs; our choice.

It roughly keeps the size of the features. Upstream's He initialisation over the outputs shrinks
them to 1e-6 over the two stages; its networks start from trained weights.
"""


class GatedConvolution(nn.Module):
    """activation(a) * sigmoid(b), where a and b are the halves of a convolution's output."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: Callable[[Tensor], Tensor] = functional.elu,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv2d(inputs, 2 * outputs, kernel, stride, padding, dilation)
        self.activation = activation
        bound = GAIN * math.sqrt(3.0 / (inputs * kernel**2))
        nn.init.uniform_(self.convolution.weight, -bound, bound)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        values, gates = self.convolution(hidden).chunk(2, dim=1)
        return self.activation(values) * torch.sigmoid(gates)


def _encoder(inputs: int, width: int, halving: Sequence[int]) -> nn.Sequential:
    """Layers down to a quarter of the resolution and 2 ``width`` channels.

    Args:
        halving: channels of the two layers of stride 2.
    """
    first, second = halving
    return nn.Sequential(
        GatedConvolution(inputs, width // 2, kernel=5),
        GatedConvolution(width // 2, first, stride=2),
        GatedConvolution(first, width),
        GatedConvolution(width, second, stride=2),
        GatedConvolution(second, 2 * width),
    )


def _dilated(width: int) -> nn.Sequential:
    first = GatedConvolution(2 * width, 2 * width)
    others = (GatedConvolution(2 * width, 2 * width, dilation=d) for d in DILATIONS)
    return nn.Sequential(first, *others)


class _Decoder(nn.Module):
    """Features at a quarter of the resolution to pixels in [-1, 1].

    Upsampling is nearest, to the sides that the encoder had, so that any side works.
    """

    def __init__(self, inputs: int, width: int, channels: int) -> None:
        super().__init__()
        self.lowest = nn.Sequential(
            GatedConvolution(inputs, 2 * width), GatedConvolution(2 * width, 2 * width)
        )
        self.middle = nn.Sequential(
            GatedConvolution(2 * width, width), GatedConvolution(width, width)
        )
        self.full = nn.Sequential(
            GatedConvolution(width, width // 2), GatedConvolution(width // 2, width // 4)
        )
        self.last = nn.Conv2d(width // 4, channels, 3, padding=1)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: Tensor, size: Sequence[int]) -> Tensor:
        half = [-(-side // 2) for side in size]
        hidden = functional.interpolate(self.lowest(hidden), half, mode="nearest")
        hidden = functional.interpolate(self.middle(hidden), list(size), mode="nearest")
        return torch.tanh(self.last(self.full(hidden)))


class Coarse(nn.Module):
    """First stage: image without its masked pixels, ones and mask, to pixels in [-1, 1]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels + 2, width, (width, 2 * width))
        self.dilated = _dilated(width)
        self.decoder = _Decoder(2 * width, width, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(self.dilated(self.encoder(inputs)), inputs.shape[2:])


class Fine(nn.Module):
    """Second stage: an image with filled pixels to pixels in [-1, 1], over two branches.

    One branch has dilated layers, the other contextual attention. The mask acts in the attention
    alone.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, width, (width // 2, width))
        self.dilated = _dilated(width)
        self.attention_encoder = nn.Sequential(
            *_encoder(channels, width, (width // 2, 2 * width)),
            GatedConvolution(2 * width, 2 * width, activation=functional.relu),
        )
        self.attended = nn.Sequential(
            GatedConvolution(2 * width, 2 * width), GatedConvolution(2 * width, 2 * width)
        )
        self.decoder = _Decoder(4 * width, width, channels)

    def forward(self, filled: Tensor, mask: Tensor) -> Tensor:
        features = self.attention_encoder(filled)
        attended = self.attended(attend(features, mask[..., ::4, ::4]))
        dilated = self.dilated(self.encoder(filled))
        return self.decoder(torch.cat([dilated, attended], dim=1), filled.shape[2:])


class Generator(nn.Module):
    """Fill the masked pixels of images; 4,052,478 parameters at width 48 and 3 channels.

    Args:
        channels: of the images.
        width: of the layers at half the resolution; a multiple of 4.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.coarse = Coarse(channels, width)
        self.fine = Fine(channels, width)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Whole images of both stages; neither repeats the known pixels exactly.

        Args:
            pixels: (n, C, H, W) in [-1, 1].
            mask: 1 where a pixel is missing, else 0; (n, 1, H, W).
        """
        kept = pixels * (1.0 - mask)
        coarse = self.coarse(torch.cat([kept, torch.ones_like(mask), mask], dim=1))
        return coarse, self.fine(coarse * mask + kept, mask)


class Discriminator(nn.Module):
    """Scores of patches (n, ...), high for real ones, of pixels and mask; 5x5, stride 2.

    Every convolution has spectral normalisation and LeakyReLU(.2), also the last one. At width 64,
    depth 6 and 3 channels there are 5,946,816 parameters.

    Upstream divides the stored weights by their norm at every call; here the weights stay as they
    are and the normalised ones are used (Miyato et al. 2018).
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [channels + 1, *(width * min(2**number, 4) for number in range(depth))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            convolution = nn.Conv2d(inputs, outputs, KERNEL, stride=2, padding=KERNEL // 2)
            layers += [spectral_norm(convolution), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        return self.layers(torch.cat([pixels, mask], dim=1)).flatten(1)


def discriminator_loss(
    discriminator: nn.Module, real: Tensor, generated: Tensor, mask: Tensor
) -> Tensor:
    """Half the sum of the two hinge losses, without gradients for the generator."""
    pixels = torch.cat([real, generated.detach()])
    scores = discriminator(pixels, torch.cat([mask, mask]))
    above = functional.relu(1.0 - scores[: len(real)]).mean()
    below = functional.relu(1.0 + scores[len(real) :]).mean()
    return (above + below) / 2.0


def generator_loss(discriminator: nn.Module, generated: Tensor, mask: Tensor) -> Tensor:
    """Negative mean score, without gradients for the discriminator's weights."""
    weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    return -functional_call(discriminator, weights, (generated, mask)).mean()


def generative_loss(
    images: Tensor,
    stages: tuple[Tensor, Tensor],
    masks: Tensor,
    discriminator: nn.Module | None,
    l1_weight: float,
    mse_weight: float,
    gan_weight: float,
) -> Tensor:
    """Reconstruction of ``images`` by both stages, and the GAN's loss of each network.

    Each network has gradients of its own loss only.

    Args:
        images, stages: real pixels, and those of the coarse and the fine stage, all (n, C, H, W) in
            [-1, 1].
        masks: (n, 1, H, W).
        discriminator: None: no GAN.
        l1_weight, mse_weight: of the mean errors of each stage.
        gan_weight: of the generator's loss; the discriminator's has weight 1.
    """
    loss = images.new_zeros(())
    for stage in stages:
        if l1_weight:
            loss = loss + l1_weight * functional.l1_loss(stage, images)
        if mse_weight:
            loss = loss + mse_weight * functional.mse_loss(stage, images)
    if discriminator is None:
        return loss
    own = discriminator_loss(discriminator, images, stages[1], masks)
    return loss + own + gan_weight * generator_loss(discriminator, stages[1], masks)
