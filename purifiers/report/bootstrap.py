"""Paired two-level bootstrap of a difference between two cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
"""Resamples behind a percentile interval (our choice)."""

CONFIDENCE = 0.95

SEED = 0
"""Seed of the resampling: the same runs give the same interval, digit for digit."""


@dataclass(frozen=True)
class Difference:
    """A difference and its 95 % percentile interval."""

    estimate: float
    low: float
    high: float


def paired_difference(better: Sequence[np.ndarray], than: Sequence[np.ndarray]) -> Difference:
    """Interval of ``worst(better) - worst(than)``, averaged over the seeds.

    Each resample draws seeds with replacement, then images with replacement: the same seeds and
    the same images for both sides and, since all seeds classify the same images, for every seed. A
    side's value under a seed is the minimum over its runs of their means over the images, taken
    anew in each resample. With a single seed the interval speaks of the images only.

    Args:
        better: per seed, values of shape (runs, images): 1 where correct, else 0.
        than: the other side, with the same seeds and the same images in the same order.

    Raises:
        ValueError: no seeds, or seeds or images that differ in number.
    """
    sides = [np.asarray(side, dtype=float) for side in (*better, *than)]
    if not better or len(better) != len(than) or len({side.shape[1] for side in sides}) != 1:
        raise ValueError("both sides need the same seeds and the same images")
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
