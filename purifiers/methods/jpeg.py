"""JPEG compression (Dziugaite et al. 2016; Guo et al. 2018), by Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifiers.core.component import Method
from purifiers.core.ranges import Quality
from purifiers.core.straight_through import with_gradient_of
from purifiers.core.traits import Images, MethodTraits


class Jpeg(Method):
    """Round to 8 bits, encode as JPEG with 4:2:0 subsampling, and decode.

    The gradient is that of kornia's differentiable JPEG (Reich et al. 2024), whose rounding is
    soft; the values are always Pillow's. Where a coefficient is a whole number, as on a uniform
    block, the soft rounding has no gradient: also attack with ``gradient: bpda``.

    Args:
        quality: of the encoder, 1 to 100. 75 is Guo et al.'s and Pillow's default.
    """

    traits = MethodTraits(version=1, images=Images(channels=(1, 3)))

    def __init__(self, *, quality: Quality = 75) -> None:
        super().__init__()
        self.quality = quality

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Compressed images, on 256 levels; the same for every seed."""
        compressed = compress(images, self.quality)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return compressed
        return with_gradient_of(compressed, soft_compress(images, self.quality))


def compress(images: Tensor, quality: int) -> Tensor:
    """Encode and decode each image with Pillow, float32 (n, C, H, W) in [0, 1].

    Args:
        images: float32 (n, C, H, W) in [0, 1] with 1 or 3 channels; rounded to 8 bits.
        quality: 1 to 100.
    """
    pixels = (255.0 * images.detach()).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(pixels, order="C")
    for source, target in zip(pixels, decoded, strict=True):
        grey = source.shape[2] == 1
        buffer = io.BytesIO()
        picture = Image.fromarray(source[..., 0] if grey else source)
        picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        array = np.asarray(Image.open(buffer))
        target[...] = array[..., None] if grey else array
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().to(images) / 255.0


def soft_compress(images: Tensor, quality: int) -> Tensor:
    """kornia's differentiable approximation of :func:`compress`; grey as three equal channels."""
    from kornia.enhance import jpeg_codec_differentiable  # takes a second to import

    colour = images.expand(-1, 3, -1, -1)
    levels = torch.full((1,), float(quality), device=images.device)
    soft: Tensor = jpeg_codec_differentiable(colour, levels)
    return soft.mean(dim=1, keepdim=True) if images.shape[1] == 1 else soft
