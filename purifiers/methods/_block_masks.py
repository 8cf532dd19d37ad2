"""Random masks of square blocks, one set per image, drawn from the image's index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.core.noise import keys_on, uniform_on
from purifiers.core.target import FIRST_DRAW

FIXED = "fixed"
"""One mask for all images and draws: a purification's choice, never a training's."""


def block_masks(
    seed: int,
    indices: Tensor,
    size: Sequence[int],
    block: int,
    share: float,
    count: int,
    sharing: str,
) -> Tensor:
    """Masks (n, count, 1, H, W), 1 where a block is missing, else 0; on the device of ``indices``.

    One mask has the largest whole number of blocks that is at most ``share`` of all. Several masks
    are disjoint and cover the image; their numbers of blocks differ by at most 1.

    Args:
        indices: int64 (n,).
        size: (H, W), multiples of ``block``.
        count: masks per image.
        sharing: ``image``: each image's mask depends on (seed, index). ``shared``: on the seed and
            the draw of an attack's EOT alone, so that all images have the same. ``fixed``: on
            nothing.
    """
    rows, columns = (side // block for side in size)
    blocks = rows * columns
    if sharing == FIXED:
        seed, sources = 0, torch.zeros_like(indices)
    else:
        sources = indices // FIRST_DRAW if sharing == "shared" else indices
    order = uniform_on(keys_on(seed, sources, "block_masks"), (blocks,)).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1).unsqueeze(1)
    if count == 1:
        missing = rank < masked_blocks(size, block, share)
    else:
        numbers = torch.arange(count, device=indices.device).view(1, -1, 1)
        missing = rank * count // blocks == numbers
    masks = missing.to(torch.float32).view(-1, count, 1, rows, columns)
    return masks.repeat_interleave(block, dim=3).repeat_interleave(block, dim=4)


def masked_blocks(size: Sequence[int], block: int, share: float) -> int:
    """Number of blocks in one mask."""
    blocks = (size[0] // block) * (size[1] // block)
    return int(share * blocks + 1e-9)  # 0.1 * 30 is below 3 in floating point
