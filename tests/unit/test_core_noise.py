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


def test_words_are_those_of_splitmix64():
    """The published test vector of seed 1234567; the numbers of attacks hang on it for ever."""
    expected = [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
        4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    found = noise.words(torch.tensor([1234567]), torch.arange(5))
    assert [word % 2**64 for word in found[0].tolist()] == expected


def test_keys_are_derived_seeds():
    keys = noise.keys(3, [7, 0], "tag")
    assert keys.tolist() == [noise.derive_seed(3, 7, "tag"), noise.derive_seed(3, 0, "tag")]
    assert torch.equal(noise.keys(3, torch.tensor([7, 0]), "tag"), keys)
    assert noise.keys(0, []).shape == (0,)


def test_a_place_of_a_stream_can_be_read_alone():
    keys = noise.keys(0, range(5))
    whole = noise.words(keys, torch.arange(60).view(3, 20))
    assert whole.shape == (5, 3, 20)
    assert torch.equal(noise.words(keys[2:3], torch.tensor([47]))[0, 0], whole[2, 2, 7])
    vectors = noise.sign_vectors(keys, torch.arange(6), 100)
    assert vectors.shape == (5, 6, 100) and vectors.dtype == torch.float32
    assert torch.equal(noise.sign_vectors(keys[[4, 1]], torch.tensor([5, 2]), 100),
                       vectors[[4, 1]][:, [5, 2]])  # fmt: skip
    assert noise.sign_vectors(keys[:0], torch.arange(6), 3).shape == (0, 6, 3)


def test_every_bit_of_a_word_is_fair():
    words = noise.words(noise.keys(1, range(100)), torch.arange(200))
    bits = (words.flatten().unsqueeze(1) >> torch.arange(64)) & 1
    # 20000 draws, standard deviation .0035
    assert (bits.double().mean(dim=0) - 0.5).abs().max() < 0.014
    together = torch.corrcoef(bits.T.double()) - torch.eye(64)
    assert together.abs().max() < 0.04
    assert len(words.unique()) == words.numel()


@pytest.mark.parametrize("high", [2, 7, 28])
def test_integers_are_uniform(high):
    drawn = noise.integers(noise.keys(2, range(100)), torch.arange(280), high)
    assert drawn.min() == 0 and drawn.max() == high - 1
    expected = drawn.numel() / high
    chi_square = ((torch.bincount(drawn.flatten()) - expected) ** 2 / expected).sum()
    # mean high - 1, variance 2 (high - 1)
    assert chi_square < (high - 1) + 5 * (2 * (high - 1)) ** 0.5
    # also from one image to the next at the same place of the stream, and along a stream
    for pairs in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
        first, second = (d.flatten().double() for d in pairs)
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.03


def test_integers_below_a_bound_per_place():
    drawn = noise.integers(noise.keys(0, range(500)), torch.arange(3), torch.tensor([1, 4, 2**31]))
    assert (drawn[:, 0] == 0).all()
    assert drawn[:, 1].unique().tolist() == [0, 1, 2, 3]
    assert drawn[:, 2].max() > 2**30 and drawn.min() >= 0


def test_sign_vectors():
    drawn = noise.sign_vectors(noise.keys(0, range(40)), torch.arange(3), 130)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.04
    flat = drawn.flatten(0, 1)
    together = flat @ flat.T / 130 - torch.eye(120)
    assert together.abs().max() < 5.5 / 130**0.5  # standard deviations
