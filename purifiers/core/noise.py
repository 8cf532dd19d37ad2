"""Random numbers that depend on an image's index, not on its position in a batch."""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.core.errors import UserError


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed derived from integers and strings; the same on every machine.

    Integers of NumPy and torch count as Python's.

    Raises:
        UserError: a part is another number.
    """
    plain = (part if isinstance(part, str) else _whole(part) for part in parts)
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in plain)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _whole(part: int) -> int:
    try:
        return operator.index(part)
    except TypeError:
        raise UserError(f"seed is {part!r}, but takes a whole number") from None


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
    """Uniform noise in [low, high), float32 (len(indices), *shape).

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


# splitmix64: increment and multipliers (Steele, Lea & Flood 2014, section 5), as signed integers
_INCREMENT, _FIRST, _SECOND = (
    constant - (1 << 64)
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def keys(seed: int, indices: Sequence[int] | Tensor, tag: str = "") -> Tensor:
    """Key of each image's stream of random numbers, int64 (n,), from (seed, index, tag).

    For attacks that draw thousands of times: :func:`words` computes any number of a stream without
    a generator per image. Keys can be selected and moved to a device like other rows; the numbers
    are the same on every device.
    """
    listed = indices.tolist() if isinstance(indices, Tensor) else indices
    seeds = [derive_seed(seed, int(index), tag) for index in listed]
    return torch.tensor(seeds, dtype=torch.int64)


def words(keys: Tensor, counters: Tensor) -> Tensor:
    """64 random bits per counter and key, int64 (len(keys), *counters.shape).

    Word k of a stream is the k-th output of splitmix64 seeded with the key.

    Args:
        keys: of :func:`keys`, int64 (n,).
        counters: positions in the streams, int64 of any shape, not negative.
    """
    state = keys.view(-1, *[1] * counters.dim()) + (counters + 1) * _INCREMENT
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def integers(keys: Tensor, counters: Tensor, high: int | Tensor) -> Tensor:
    """Uniform integers in [0, high), int64 (len(keys), *counters.shape).

    Each uses one word. No value is more likely than another by more than high / 2^32.

    Args:
        high: at most 2^31; a tensor is broadcast against ``counters``.
    """
    return (_shifted(words(keys, counters), 32) * high) >> 32


def keys_on(seed: int, indices: Tensor, tag: str = "") -> Tensor:
    """Key of each image's stream, int64 (n,), computed on the device of ``indices``.

    For new code: no loop over images. The streams are others than those of :func:`keys`. The key of
    index k is word k of the stream that (seed, tag) sets.

    Args:
        indices: int64 (n,), not negative.
    """
    base = torch.full((1,), derive_seed(seed, tag), dtype=torch.int64, device=indices.device)
    return words(base, indices).squeeze(0)


def uniform_on(
    keys: Tensor, shape: Sequence[int], first: int = 0, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform noise in [low, high), float32 (len(keys), *shape), on the device of ``keys``.

    The bits are the same on every device. Each number uses one word of its image's stream, of which
    it takes the upper 24 bits.

    Args:
        keys: of :func:`keys` or :func:`keys_on`, int64 (n,).
        first: number of the first word; further draws begin where earlier ones ended.
    """
    fractions = _shifted(_stream(keys, shape, first), 40).float() / (1 << 24)
    return fractions * (high - low) + low


def normal_on(keys: Tensor, shape: Sequence[int], first: int = 0) -> Tensor:
    """Standard normal noise, float32 (len(keys), *shape), on the device of ``keys``.

    The bits are the same on every device, because no function is computed there that devices round
    differently. Each number is the sum of two quantiles, picked by the upper and the next 16 bits
    of one word, divided by the square root of 2. Its size is at most 6.1.

    Args:
        keys, first: as for :func:`uniform_on`.
    """
    drawn = _stream(keys, shape, first)
    table = _quantiles(keys.device)
    return table[_shifted(drawn, 48)] + table[_shifted(drawn, 32) & 0xFFFF]


def _stream(keys: Tensor, shape: Sequence[int], first: int) -> Tensor:
    """The words from number ``first`` on, int64 (len(keys), *shape)."""
    count = math.prod(shape)
    counters = torch.arange(first, first + count, device=keys.device)
    return words(keys, counters).view(-1, *shape)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """2^16 equally likely quantiles of a normal distribution of mean 0 and variance 1/2."""
    places = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(places)
    scaled = quantiles / (2 * quantiles.square().mean()).sqrt()
    return scaled.float().to(device)


def sign_vectors(keys: Tensor, counters: Tensor, size: int) -> Tensor:
    """A vector of ``size`` random signs per counter, float32 (len(keys), *counters.shape, size).

    Vector k uses the ceil(size / 64) words from k * ceil(size / 64) on, one bit per sign.
    """
    device = counters.device
    words_each = -(-size // 64)
    places = counters.unsqueeze(-1) * words_each + torch.arange(words_each, device=device)
    bits = (words(keys, places).unsqueeze(-1) >> torch.arange(64, device=device)) & 1
    return (bits.flatten(-2)[..., :size] * 2 - 1).float()


def _shifted(values: Tensor, places: int) -> Tensor:
    """Logical right shift; the shift operator of torch copies the sign bit."""
    return (values >> places) & ((1 << (64 - places)) - 1)
