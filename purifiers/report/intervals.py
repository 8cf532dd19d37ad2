"""Confidence interval of a proportion."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson(n_correct: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval (Wilson 1927, without continuity correction).

    Args:
        n_correct: successes in [0, n]; a fraction is allowed, for a proportion pooled over seeds.
        n: number of trials, at least 1.
        confidence: two-sided level in (0, 1).

    Returns:
        Lower and upper end as proportions in [0, 1]; exactly 0 when ``n_correct`` is 0 and exactly
        1 when it is ``n``.

    Raises:
        ValueError: ``n`` below 1, ``n_correct`` outside [0, n], or ``confidence`` outside (0, 1).
    """
    if n < 1 or not 0 <= n_correct <= n:
        raise ValueError(f"{n_correct} of {n} is not a proportion: 0 <= n_correct <= n, n >= 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = n_correct / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half_width = z / scale * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if n_correct == 0 else max(0.0, centre - half_width)
    high = 1.0 if n_correct == n else min(1.0, centre + half_width)
    return low, high
