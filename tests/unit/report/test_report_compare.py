from __future__ import annotations

import dataclasses
from math import sqrt

import pytest
from scipy.stats import binomtest

from purifiers.plan.cells import ScaleInfo
from purifiers.report.compare import tolerance, verdict


def compare(scale: ScaleInfo, deviation: float, **changes: object) -> str:
    arguments: dict = {
        "published": 60.0,
        "reproduced": 60.0 + deviation,
        "scale": scale,
        "stand_in": False,
        "interval": (57.0 + deviation, 63.0 + deviation),
        "published_n": 1000,
        "seed_spread": 0.0,
    }
    return verdict(**(arguments | changes))


def test_tolerance_combines_both_intervals_and_the_seeds() -> None:
    published = binomtest(600, 1000).proportion_ci(method="wilson")
    half = 100 * (published.high - published.low) / 2
    expected = sqrt(half**2 + 3.0**2 + 2.0**2)
    assert tolerance(60.0, (57.0, 63.0), 1000, 4.0) == pytest.approx(expected)


def test_match_and_differs(paper_scale: ScaleInfo) -> None:
    # Half-widths 3.0 and about 3.03: the limit is about 4.27 percentage points.
    assert compare(paper_scale, 4.2) == "match"
    assert compare(paper_scale, -4.2) == "match"
    assert compare(paper_scale, 4.4) == "differs"


def test_spread_over_seeds_widens_the_limit(paper_scale: ScaleInfo) -> None:
    assert compare(paper_scale, 4.4, seed_spread=4.0) == "match"


def test_nothing_is_compared_at_a_reduced_scale_or_with_a_stand_in(paper_scale: ScaleInfo) -> None:
    reduced = dataclasses.replace(paper_scale, reduced=True)
    assert compare(reduced, 0.0) == "not comparable at this scale"
    assert compare(paper_scale, 0.0, stand_in=True) == "not comparable at this scale"


def test_no_published_value(paper_scale: ScaleInfo) -> None:
    assert compare(paper_scale, 0.0, published=None) == "no published value"


def test_other_metrics_have_a_relative_limit(paper_scale: ScaleInfo) -> None:
    assert compare(paper_scale, 6.0, interval=None) == "match"
    assert compare(paper_scale, 6.1, interval=None) == "differs"
    assert compare(paper_scale, 6.1, interval=None, seed_spread=4.0) == "match"
