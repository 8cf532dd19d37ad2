"""The L2 ball: lengths, directions, projection and a random start."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.core import noise


def direction(vectors: Tensor) -> Tensor:
    """Each of (n, C, H, W) divided by its L2 norm; zero where it is zero."""
    tiny = torch.finfo(vectors.dtype).tiny
    # a saturated model's gradients may be too small to be squared
    scaled = vectors / vectors.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    return scaled / _norms(scaled).clamp_min(tiny)


def project(points: Tensor, images: Tensor, radius: float) -> Tensor:
    """The nearest points (n, C, H, W) in the L2 balls around ``images``, clipped to [0, 1].

    Clipping leads no farther from an image, so the result is in both; it need not be the nearest
    point there.
    """
    shift = points - images
    scale = radius / _norms(shift).clamp_min(radius)
    return (images + scale * shift).clamp_(0.0, 1.0)


def random_start(images: Tensor, radius: float, seed: int, indices: Tensor, tag: str) -> Tensor:
    """Uniform in the L2 ball around each image, clipped to [0, 1]; decided by (seed, index)."""
    shape = images.shape[1:]
    towards = direction(noise.normal(seed, indices, shape, tag=f"{tag} direction"))
    # a share r ** dimension of the ball lies within r
    share = noise.uniform(seed, indices, (1, 1, 1), tag=tag) ** (1 / shape.numel())
    return (images + (radius * share * towards).to(images.device)).clamp_(0.0, 1.0)


def _norms(vectors: Tensor) -> Tensor:
    return vectors.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
