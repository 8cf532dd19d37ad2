"""AToP as its authors run it, for comparison: one mask and here also one image after the other."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from purifiers.core.noise import keys_on, normal_on
from purifiers.methods._block_masks import block_masks
from purifiers.methods.atop import Atop


def contiguous(method: Atop) -> nn.Module:
    """A copy of the generator in contiguous layout."""
    generator: nn.Module = copy.deepcopy(method.generator)
    generator.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return generator


def mask_by_mask(method: Atop, generator: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Purified images (n, C, H, W) with the noise and masks of ``method.purify(images, seed)``.

    Args:
        generator: from :func:`contiguous`.
        images: float32 (n, C, H, W) in [0, 1].
    """
    purified = []
    for index, image in enumerate(images.split(1)):
        rows = torch.tensor([index], device=images.device)
        noise = normal_on(keys_on(seed, rows, "atop"), image.shape[1:])
        noisy = (image + method.noise * noise).clamp(0.0, 1.0)
        size, share = image.shape[2:], method.mask_share
        masks = block_masks(seed, rows, size, method.mask_block, share, method.masks, method.mask)
        joined = torch.zeros_like(image)
        for mask in masks[0].split(1):
            fine = generator(2.0 * noisy - 1.0, mask)[1]
            joined = joined + fine * mask if method.masks > 1 else fine
        purified.append((joined + 1.0) / 2.0)
    return torch.cat(purified)
