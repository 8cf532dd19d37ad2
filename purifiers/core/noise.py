"""Randomness that belongs to an image, not to its place in a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and strings; the same on every machine and in every run."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded from ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def _rows(seed: int, indices: Sequence[int] | Tensor, tag: str) -> list[torch.Generator]:
    listed = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    return [generator(seed, int(index), tag) for index in listed]


def uniform(
    seed: int,
    indices: Sequence[int] | Tensor,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    tag: str = "",
) -> Tensor:
    """Uniform noise in [low, high), (len(indices), *shape).

    Row i depends on (seed, indices[i], tag) alone.
    """
    rows = [torch.rand(tuple(shape), generator=g) for g in _rows(seed, indices, tag)]
    stacked = torch.stack(rows) if rows else torch.empty((0, *shape))
    return stacked * (high - low) + low


def normal(
    seed: int, indices: Sequence[int] | Tensor, shape: Sequence[int], tag: str = ""
) -> Tensor:
    """Standard normal noise (len(indices), *shape); row i depends on (seed, indices[i], tag)."""
    rows = [torch.randn(tuple(shape), generator=g) for g in _rows(seed, indices, tag)]
    return torch.stack(rows) if rows else torch.empty((0, *shape))


def signs(
    seed: int, indices: Sequence[int] | Tensor, shape: Sequence[int], tag: str = ""
) -> Tensor:
    """Random signs, -1 or +1, (len(indices), *shape); row i depends on (seed, indices[i], tag)."""
    return torch.where(uniform(seed, indices, shape, tag=tag) < 0.5, -1.0, 1.0)
