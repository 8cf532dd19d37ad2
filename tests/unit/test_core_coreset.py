"""Facility location against numbers worked out by hand and against a plain greedy search."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.core.coreset import facility_location, shares


def test_two_of_four_points_by_hand():
    """Squared distances of 0, 1, 2 and 10: the largest is 100.

    Sums of 100 - d: 295, 317 (1: 99 + 100 + 99 + 19), 331 (2: 96 + 99 + 100 + 36) and 155; 2 wins.
    Then 10 adds 64 and 0 adds 4 + 0.
    """
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    chosen, weights = facility_location(points, 2)
    assert chosen.tolist() == [2, 3]
    assert weights.tolist() == [3.0, 1.0]


def plain_greedy(points: Tensor, count: int) -> list[int]:
    distances = (points[:, None] - points[None]).square().sum(dim=2).double()
    similarity = distances.max() - distances
    chosen: list[int] = []
    for _ in range(count):
        covered = similarity[chosen].amax(dim=0) if chosen else torch.zeros(len(points))
        gains = torch.maximum(similarity, covered.double()).sum(dim=1)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
    return sorted(chosen)


def test_the_lazy_search_finds_what_the_plain_one_finds():
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    for count in (1, 7, 30, 60):
        chosen, weights = facility_location(points, count)
        assert chosen.tolist() == plain_greedy(points, count)
        assert weights.sum() == 60 and weights.min() >= 1


def test_points_that_coincide_represent_themselves():
    """A batch of images of weight 0 would have no loss."""
    chosen, weights = facility_location(torch.zeros(5, 3), 3)
    assert chosen.tolist() == [0, 1, 2]
    assert weights.tolist() == [3.0, 1.0, 1.0]
    assert [len(part) for part in facility_location(torch.zeros(0, 3), 0)] == [0, 0]


def test_shares_go_to_the_largest_remainders():
    """5 of 11: 2.27, 2.27 and 0.45."""
    assert shares(torch.tensor([5, 5, 1]), 5).tolist() == [2, 2, 1]
    assert shares(torch.tensor([4, 0, 4]), 3).tolist() == [2, 0, 1]
    assert shares(torch.tensor([3, 2]), 5).tolist() == [3, 2]
