"""Paired two-level bootstrap of a difference between two cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
"""Resamples behind a percentile interval (our choice)."""

CONFIDENCE = 0.95
"""Two-sided level of the intervals."""

SEED = 0
"""Seed of the resampling, fixed so that the same runs give exactly the same interval."""


@dataclass(frozen=True)
class Difference:
    """A difference and its 95 % percentile interval."""

    estimate: float
    low: float
    high: float


def paired_difference(better: Sequence[np.ndarray], than: Sequence[np.ndarray]) -> Difference:
    """Estimate ``worst(better) - worst(than)``, averaged over the seeds, with its interval.

    Each resample draws seeds with replacement, then images with replacement. Both sides use the
    same seeds and the same images. All seeds use the same images, because they classify the same
    ones. The value of a side under a seed is the minimum over its runs of their mean over the
    images, recomputed in each resample. With a single seed the interval covers the choice of
    images only.

    Args:
        better: per seed, values of shape (runs, images): 1 where correct, else 0.
        than: the other side, with the same seeds and the same images in the same order.

    Returns:
        The difference and its 95 % percentile interval, in the units of the values.

    Raises:
        ValueError: no seeds, or the sides differ in their number of seeds or images.
    """
    sides = [np.asarray(side, dtype=float) for side in (*better, *than)]
    if not better or len(better) != len(than) or len({side.shape[1] for side in sides}) != 1:
        raise ValueError("both sides need the same seeds (at least one) and the same images")
    columns, counts = np.unique(np.concatenate(sides), axis=1, return_counts=True)
    n, seeds = int(counts.sum()), len(better)
    generator = np.random.default_rng(SEED)
    # Images with equal columns are interchangeable, so only their number is drawn.
    weights = np.vstack([counts, generator.multinomial(n, counts / n, size=RESAMPLES)]) / n
    draws = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    seed_weights = np.vstack([np.ones(seeds, dtype=int), draws]) / seeds
    means = np.split(columns @ weights.T, np.cumsum([len(side) for side in sides])[:-1])
    worst = np.stack([runs.min(axis=0) for runs in means])
    difference = ((worst[:seeds] - worst[seeds:]) * seed_weights.T).sum(axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(difference[1:], [tail, 1 - tail])
    return Difference(float(difference[0]), float(low), float(high))
