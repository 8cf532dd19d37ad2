"""Contextual attention (Yu et al. 2018): rebuild features from similar patches of known pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 3
"""Side of the compared patches, on maps of half the resolution (`glin2022/atop`, as all here)."""
RATE = 2
"""Factor between the features and the maps on which patches are compared."""
SCALE = 10.0
"""Factor on the similarities before the softmax."""
SMALLEST_NORM = 1e-4
"""Lower bound of the norm by which a patch is divided."""


def attend(features: Tensor, masked: Tensor) -> Tensor:
    """Each patch of ``features`` replaced by a mean of the known patches, weighted by similarity.

    The similarity of two patches is the product of the one with the other, the latter divided by
    its norm, summed over neighbours in the same direction (:func:`_fused`). Patches that contain a
    masked pixel have no weight, nor any similarity: as upstream, their part of the softmax is that
    of a similarity of 0 and is lost. If all patches are masked, the result is 0.

    Upstream uses the mask of the batch's first image for all images. Here each has its own.

    Args:
        features: (n, channels, height, width); both sides at least 2.
        masked: 1 where a pixel is missing, else 0; (n, 1, height, width).

    Returns:
        Same shape as ``features``.
    """
    height, width = (side // RATE for side in features.shape[2:])
    small = features[..., : RATE * height : RATE, : RATE * width : RATE]
    small_mask = masked[..., : RATE * height : RATE, : RATE * width : RATE]
    patches = functional.unfold(small, PATCH, padding=PATCH // 2)
    norms = patches.square().sum(dim=1, keepdim=True).clamp_min(SMALLEST_NORM**2).sqrt()
    similarity = _fused((patches / norms).mT @ patches, height, width)
    known = functional.unfold(small_mask, PATCH, padding=PATCH // 2).sum(dim=1) == 0
    known = known.unsqueeze(2).to(features.dtype)
    weights = torch.softmax(SCALE * similarity * known, dim=1) * known
    large = {"kernel_size": 2 * RATE, "stride": RATE, "padding": RATE // 2}
    pasted = functional.unfold(features, **large) @ weights
    # a pixel lies in RATE^2 of the large patches
    return functional.fold(pasted, features.shape[2:], **large) / RATE**2


def _fused(similarity: Tensor, height: int, width: int) -> Tensor:
    """Similarities (n, patches, patches) summed over neighbours, row by row and column by column.

    Similar patches next to similar patches count more. Positions are numbered along rows, and the
    end of a row is the neighbour of the beginning of the next one. Then the same along columns.
    """
    shape = similarity.shape
    by_rows = _diagonal(similarity).view(-1, height, width, height, width)
    by_columns = by_rows.permute(0, 2, 1, 4, 3).reshape(shape)
    summed = _diagonal(by_columns).view(-1, width, height, width, height)
    return summed.permute(0, 2, 1, 4, 3).reshape(shape)


def _diagonal(values: Tensor) -> Tensor:
    """Sum of the values at (i - 1, j - 1), (i, j) and (i + 1, j + 1); 0 outside."""
    return (
        values
        + functional.pad(values[:, :-1, :-1], (1, 0, 1, 0))
        + functional.pad(values[:, 1:, 1:], (0, 1, 0, 1))
    )
