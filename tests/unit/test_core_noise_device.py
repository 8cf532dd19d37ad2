"""Noise for devices, against plain integers and the standard library."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean

import pytest
import torch

from purifiers.core import noise

INDICES = torch.tensor([0, 7, (3 << 40) + 12])
MASK = (1 << 64) - 1


def word(key: int, counter: int) -> int:
    """Output number ``counter`` of splitmix64, in integers of any size."""
    state = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def expected_words(count: int, first: int = 0) -> list[list[int]]:
    base = noise.derive_seed(5, "test")
    keys = [word(base, index) for index in INDICES.tolist()]
    return [[word(key, first + k) for k in range(count)] for key in keys]


def test_keys_by_hand():
    keys = noise.keys_on(5, INDICES, "test")
    base = noise.derive_seed(5, "test")
    assert [key & MASK for key in keys.tolist()] == [word(base, k) for k in INDICES.tolist()]
    assert len(set(noise.keys_on(5, torch.arange(1000)).tolist())) == 1000


@pytest.mark.parametrize("first", [0, 6])
def test_uniform_by_hand(first):
    values = noise.uniform_on(noise.keys_on(5, INDICES, "test"), (2, 3), first)
    by_hand = [[(w >> 40) / 2**24 for w in row] for row in expected_words(6, first)]
    assert values.dtype == torch.float32 and values.shape == (3, 2, 3)
    assert values.flatten(1).tolist() == by_hand  # bit by bit: 24 bits fit a float32
    scaled = noise.uniform_on(noise.keys_on(5, INDICES, "test"), (2, 3), first, -0.5, 0.25)
    assert torch.equal(scaled, values * 0.75 - 0.5)


def test_normal_by_hand():
    quantile = NormalDist().inv_cdf
    variance = fmean(quantile((k + 0.5) / 2**16) ** 2 for k in range(2**16))
    values = noise.normal_on(noise.keys_on(5, INDICES, "test"), (4,), first=2)
    by_hand = [
        [
            (quantile(((w >> 48) + 0.5) / 2**16) + quantile(((w >> 32) % 2**16 + 0.5) / 2**16))
            / math.sqrt(2 * variance)
            for w in row
        ]
        for row in expected_words(4, 2)
    ]
    torch.testing.assert_close(values, torch.tensor(by_hand), rtol=0, atol=5e-7)


def test_normal_is_normal():
    values = noise.normal_on(noise.keys_on(0, torch.arange(50)), (4000,)).double().flatten()
    assert abs(float(values.mean())) < 0.01 and abs(float(values.std()) - 1) < 0.01
    assert abs(float((values**4).mean()) - 3) < 0.1
    ordered = torch.special.ndtr(values.sort().values)
    uniform = (torch.arange(len(values)) + 0.5) / len(values)
    assert float((ordered - uniform).abs().max()) < 1.63 / math.sqrt(len(values))  # KS, 1 %


def test_a_row_depends_on_its_image_alone():
    for draw in (noise.uniform_on, noise.normal_on):
        together = draw(noise.keys_on(3, torch.tensor([4, 9]), "x"), (5,))
        alone = draw(noise.keys_on(3, torch.tensor([9]), "x"), (5,))
        assert torch.equal(together[1:], alone)
        assert not torch.equal(together[1:], draw(noise.keys_on(4, torch.tensor([9]), "x"), (5,)))


def test_computed_where_the_keys_are():
    keys = torch.zeros(2, dtype=torch.int64, device="meta")
    assert noise.uniform_on(keys, (3,)).device.type == "meta"
    assert noise.keys_on(0, keys).device.type == "meta"
