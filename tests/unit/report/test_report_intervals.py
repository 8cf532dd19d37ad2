from __future__ import annotations

import pytest
from scipy.stats import binomtest

from purifiers.report.intervals import wilson


@pytest.mark.parametrize(("n_correct", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (263, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_agrees_with_scipy(n_correct: int, n: int, confidence: float) -> None:
    expected = binomtest(n_correct, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(n_correct, n, confidence)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_known_value() -> None:
    # By hand with z = 1.959964: centre (.5 + z^2/20) / (1 + z^2/10) = .5, half-width .263405.
    assert wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)


def test_ends_are_exact() -> None:
    assert wilson(0, 37)[0] == 0.0
    assert wilson(37, 37)[1] == 1.0


def test_narrows_with_more_images() -> None:
    few, many = wilson(50, 100), wilson(5000, 10000)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(("n_correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_refuses_what_is_no_proportion(n_correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(n_correct, n)


def test_refuses_a_confidence_of_one() -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, 1.0)
