"""Noise belongs to (seed, index, tag) and to nothing else."""

from __future__ import annotations

import pytest
import torch

from purifiers.core import noise

DRAWS = [noise.uniform, noise.normal, noise.signs]


def test_derive_seed_is_the_same_everywhere_and_for_ever():
    """A change of these numbers would change every stored result."""
    assert noise.derive_seed() == 8238016292129134938
    assert noise.derive_seed(0) == 6711488920161924273
    assert noise.derive_seed(0, "attack") == 7039866056448751609


def test_derive_seed_keeps_its_parts_apart():
    parts = [
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("1", 1),
        (1, ""),
        ("", 1),
        (-1,),
        ("ab", "c"),
        ("a", "bc"),
    ]
    seeds = [noise.derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_row_depends_on_seed_and_index_only(draw):
    together = draw(3, [5, 0, 1000, 5], (2, 4))
    assert together.shape == (4, 2, 4) and together.dtype == torch.float32
    assert torch.equal(together[0], together[3])
    for place, index in enumerate([5, 0, 1000]):
        assert torch.equal(draw(3, torch.tensor([index]), (2, 4))[0], together[place])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(draw(4, [5], (2, 4))[0], together[0])
    assert not torch.equal(draw(3, [5], (2, 4), tag="x")[0], together[0])


@pytest.mark.parametrize("draw", DRAWS)
def test_the_global_generator_is_neither_used_nor_moved(draw):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw(0, [1, 2], (3,))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(0, [1, 2], (3,)), first)


@pytest.mark.parametrize("draw", DRAWS)
def test_no_rows(draw):
    assert draw(0, [], (3, 2)).shape == (0, 3, 2)
    assert draw(0, torch.arange(0), (3, 2)).shape == (0, 3, 2)


def test_uniform():
    drawn = noise.uniform(0, range(100), (100,), low=-2.0, high=1.0)
    assert drawn.min() >= -2 and drawn.max() <= 1
    counts = torch.histc(drawn, bins=10, min=-2, max=1)
    assert (counts - 1000).abs().max() < 130  # 4 standard deviations
    assert noise.uniform(0, [3], ()).shape == (1,)


def test_normal():
    drawn = noise.normal(0, range(100), (100,))
    assert abs(drawn.mean()) < 0.04 and abs(drawn.std() - 1) < 0.03
    assert abs((drawn.abs() < 1).float().mean() - 0.6827) < 0.02


def test_signs():
    drawn = noise.signs(0, range(100), (100,))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.04


def test_rows_are_not_correlated():
    drawn = noise.normal(0, range(20), (2000,))
    correlations = torch.corrcoef(drawn) - torch.eye(20)
    assert correlations.abs().max() < 0.1
