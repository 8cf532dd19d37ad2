"""Compare a reproduced value with the published one."""

from __future__ import annotations

from math import hypot

from purifiers.plan.cells import ScaleInfo
from purifiers.report.intervals import wilson

MATCH = "match"
DIFFERS = "differs"
NOT_COMPARABLE = "not comparable at this scale"
ELSEWHERE = "not comparable"
"""Verdict of times at every scale: the paper measured them on another device."""
NO_PUBLISHED = "no published value"
VERDICTS = (
    MATCH,
    DIFFERS,
    NOT_COMPARABLE,
    ELSEWHERE,
    NO_PUBLISHED,
    "failed",
    "not run",
    "not implemented",
    "quoted",
)
"""All verdicts of a table's rows. ``NO_PUBLISHED`` occurs only at a scale that is compared, where
the paper left a cell empty or the suite added one."""

RELATIVE_TOLERANCE = 0.1
"""Tolerance of metrics that are not proportions: 10 % of the published value (our choice)."""


def tolerance(
    published: float, interval: tuple[float, float], published_n: int, seed_spread: float
) -> float:
    """Largest difference at which two accuracies agree, in percentage points.

    It is ``sqrt(h_r**2 + h_p**2 + s**2)`` (our choice) with

    - ``h_r``: half the width of the reproduced value's 95 % interval,
    - ``h_p``: half the width of Wilson's 95 % interval around the published value, as a proportion
      of ``published_n`` images, because papers seldom print an interval,
    - ``s``: half the range of the reproduced value over the seeds, 0 for one seed.

    Two independent proportions differ by a random amount of variance ``h_r**2 + h_p**2`` (in units
    of the 95 % quantile); ``s`` adds the variation between trainings. Images that both sides share
    make the true variance smaller, so the comparison errs towards "match".

    Args:
        published: the published accuracy, in percent.
        interval: the reproduced value's 95 % interval, in percent.
        published_n: number of images behind the published value.
        seed_spread: highest minus lowest value over the seeds, in percentage points.
    """
    p = min(max(published / 100, 0.0), 1.0)
    low, high = wilson(p * published_n, published_n)
    h_p = 100 * (high - low) / 2
    h_r = (interval[1] - interval[0]) / 2
    return hypot(h_r, h_p, seed_spread / 2)


def verdict(
    published: float | None,
    reproduced: float,
    scale: ScaleInfo,
    stand_in: bool,
    interval: tuple[float, float] | None,
    published_n: int,
    seed_spread: float,
) -> str:
    """Compare a reproduced value with the published one.

    Args:
        published: the paper's value, or None where it printed none.
        reproduced: mean over the seeds, in the same unit.
        scale: the scale; values of a reduced scale are never compared.
        stand_in: whether another data set replaces the paper's; then values are never compared.
        interval: 95 % interval of ``reproduced`` in percent; None for metrics other than accuracy,
            which agree within ``RELATIVE_TOLERANCE`` combined with half the seeds' range.
        published_n: number of images behind the published value.
        seed_spread: highest minus lowest value over the seeds.

    Returns:
        One of ``MATCH``, ``DIFFERS``, ``NOT_COMPARABLE`` and ``NO_PUBLISHED``.
    """
    if scale.reduced or stand_in:
        return NOT_COMPARABLE
    if published is None:
        return NO_PUBLISHED
    if interval is None:
        allowed = hypot(RELATIVE_TOLERANCE * abs(published), seed_spread / 2)
    else:
        allowed = tolerance(published, interval, published_n, seed_spread)
    return MATCH if abs(reproduced - published) <= allowed else DIFFERS
