from __future__ import annotations

import numpy as np
import pytest

from purifiers.report.bootstrap import paired_difference


def draw(seed: int, p: float, runs: int = 1, n: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).random((runs, n)) < p


def test_estimate_is_the_difference_of_the_worst_means() -> None:
    better = [np.array([[1, 1, 1, 0], [1, 1, 0, 0]]), np.array([[1, 0, 0, 0], [1, 1, 1, 1]])]
    than = [np.array([[1, 0, 0, 0]]), np.array([[0, 0, 0, 0]])]
    # Seed 0: .5 - .25, seed 1: .25 - 0.
    assert paired_difference(better, than).estimate == pytest.approx(0.25)


def test_same_input_same_interval() -> None:
    first = paired_difference([draw(1, 0.6)], [draw(2, 0.5)])
    assert first == paired_difference([draw(1, 0.6)], [draw(2, 0.5)])
    assert first.low < first.estimate < first.high


def test_one_seed_agrees_with_the_normal_approximation() -> None:
    a, b = draw(1, 0.6, n=2000), draw(2, 0.5, n=2000)
    paired = a.astype(float) - b
    half = 1.96 * paired.std() / np.sqrt(paired.size)
    result = paired_difference([a], [b])
    assert result.low == pytest.approx(paired.mean() - half, abs=0.004)
    assert result.high == pytest.approx(paired.mean() + half, abs=0.004)


def test_pairing_cancels_what_both_sides_share() -> None:
    base = draw(3, 0.5)
    gained = base.copy()
    gained[0, np.flatnonzero(~base[0])[:20]] = True
    paired = paired_difference([gained], [base])
    unpaired = paired_difference([gained], [base[:, ::-1]])
    assert paired.low > 0 > unpaired.low
    assert paired.estimate == pytest.approx(unpaired.estimate)


def test_a_side_is_identical_to_itself() -> None:
    result = paired_difference([draw(1, 0.6)], [draw(1, 0.6)])
    assert (result.estimate, result.low, result.high) == (0.0, 0.0, 0.0)


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = paired_difference([draw(1, 0.7), draw(2, 0.7)], [draw(3, 0.5), draw(4, 0.5)])
    apart = paired_difference([draw(1, 0.95), draw(2, 0.45)], [draw(3, 0.5), draw(4, 0.5)])
    assert alike.low > 0 > apart.low


def test_refuses_sides_of_different_size() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_difference([draw(1, 0.5, n=10)], [draw(1, 0.5, n=9)])
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([], [])
