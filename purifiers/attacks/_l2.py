"""Geometry of the L2 ball: norms, directions, projection and a random start."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.core import noise


def direction(vectors: Tensor) -> Tensor:
    """Divide each of (n, C, H, W) by its L2 norm; zero vectors stay zero."""
    tiny = torch.finfo(vectors.dtype).tiny
    # the square of a saturated model's gradient may underflow
    scaled = vectors / vectors.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    return scaled / _norms(scaled).clamp_min(tiny)


def project(points: Tensor, images: Tensor, radius: float) -> Tensor:
    """Project points (n, C, H, W) onto the L2 balls around ``images``, then clip to [0, 1].

    Clipping never increases the distance to an image, so the result satisfies both constraints. It
    need not be the nearest point that does.
    """
    shift = points - images
    scale = radius / _norms(shift).clamp_min(radius)
    return (images + scale * shift).clamp_(0.0, 1.0)


def random_start(images: Tensor, radius: float, seed: int, indices: Tensor, tag: str) -> Tensor:
    """Uniform samples from the L2 ball around each image, clipped to [0, 1].

    An image's sample depends on (seed, index) only.
    """
    shape = images.shape[1:]
    towards = direction(noise.normal(seed, indices, shape, tag=f"{tag} direction"))
    # a fraction r ** dimension of the ball has a radius below r
    share = noise.uniform(seed, indices, (1, 1, 1), tag=tag) ** (1 / shape.numel())
    return (images + (radius * share * towards).to(images.device)).clamp_(0.0, 1.0)


def _norms(vectors: Tensor) -> Tensor:
    return vectors.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
