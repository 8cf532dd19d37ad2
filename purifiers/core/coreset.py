"""Weighted subsets of the training images, chosen anew every few epochs."""

from __future__ import annotations

import heapq
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from purifiers.core.training_images import TrainingImages


class Coreset(Protocol):
    """Chooses the training images of each epoch.

    The loop stores the rows and weights in its checkpoint, so that a resumed training continues
    with them.
    """

    def size(self, images: int) -> int:
        """Number of rows that :meth:`choose` returns, of so many images."""

    def due(self, epoch: int) -> bool:
        """Whether the rows are chosen anew before this epoch; true for epoch 0."""

    def choose(
        self, data: TrainingImages, rows: Tensor, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The rows of the next epochs, sorted, int64 (m,), and their weights, float32 (m,).

        Args:
            data: all training images.
            rows: those to choose from, int64 (n,).
            epoch: the epoch that follows.
            seed: of the training.
        """

    def use(self, rows: Tensor, weights: Tensor) -> None:
        """Weight the losses of ``rows`` by ``weights``; called before each epoch."""


def facility_location(embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose the points that minimise the sum of all points' distances to the nearest chosen one.

    Greedy maximisation of the facility location function sum_i max_{j chosen} (D - d_ij), d_ij the
    squared distance and D the largest (CRAIG, Mirzasoleiman et al. 2020). Gains are
    only recomputed while they can be the largest (Minoux 1978), which gives the same points. The
    lowest index wins a tie, so the result is deterministic.

    Args:
        embeddings: float32 (n, d). Takes 8 n^2 bytes.
        count: number of points to choose, at most n.

    Returns:
        Positions of the chosen points, sorted, int64 (count,), and their weights: for each one the
        number of points of which it is the nearest chosen one, itself included, float32 (count,).
    """
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    similarities = distances.square().cpu().numpy()
    similarities = similarities.max(initial=0.0) - similarities
    covered = np.zeros(len(similarities), dtype=np.float32)

    def gain(point: int) -> float:
        return float(np.maximum(similarities[point] - covered, 0.0).sum(dtype=np.float64))

    bounds = [(-gain(point), point) for point in range(len(similarities))]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while len(chosen) < count:
        _, point = heapq.heappop(bounds)
        current = (-gain(point), point)
        if bounds and current > bounds[0]:
            heapq.heappush(bounds, current)
            continue
        chosen.append(point)
        np.maximum(covered, similarities[point], out=covered)
    positions = np.sort(np.array(chosen, dtype=np.int64))
    nearest = similarities[positions].argmax(axis=0) if count else np.empty(0, dtype=np.int64)
    nearest[positions] = np.arange(count)  # also where several points coincide
    weights = np.bincount(nearest, minlength=count).astype(np.float32)
    return torch.from_numpy(positions), torch.from_numpy(weights)


def shares(counts: Tensor, total: int) -> Tensor:
    """Divide ``total`` among classes in proportion to ``counts``, int64 (classes,).

    Fractions go to the largest remainders, the lowest class first. No class gets more than it has
    if ``total`` is at most the sum.
    """
    exact = counts.double() * total / max(int(counts.sum()), 1)
    floor = exact.floor().long()
    left = total - int(floor.sum())
    order = (floor.double() - exact).argsort(stable=True)
    floor[order[:left]] += 1
    return floor
