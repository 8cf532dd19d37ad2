"""Both policies of dropping broken images, by hand."""

from __future__ import annotations

import pytest
import torch

from purifiers.core import active
from purifiers.core.active import ActiveSet, MaskedSet, active_set, assign

IMAGES, INDICES = torch.zeros(8, 1, 1, 1), torch.arange(100, 108)


def mask(*broken: int, size: int = 8) -> torch.Tensor:
    return torch.tensor([row not in broken for row in range(size)])


def test_choice_by_device(monkeypatch):
    assert active.reads_are_free(torch.device("cpu"))
    assert not active.reads_are_free(torch.device("cuda"))
    assert type(active_set(IMAGES, INDICES)) is ActiveSet
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    assert type(active_set(IMAGES, INDICES)) is MaskedSet


def test_cpu_drops_at_once():
    rows = ActiveSet(IMAGES, INDICES)
    assert rows.update(mask()) is None
    kept = rows.update(mask(1, 2))
    (values,) = rows.reduce(kept, torch.arange(8.0))
    assert values.tolist() == [0, 3, 4, 5, 6, 7] == rows.rows.tolist()
    assert rows.indices.tolist() == [100, 103, 104, 105, 106, 107]
    result = torch.full((8,), -1.0)
    rows.store(result, values)
    assert result.tolist() == [0, -1, -1, 3, 4, 5, 6, 7]


def test_device_looks_one_step_late_and_keeps_a_few_sizes():
    rows = MaskedSet(IMAGES, INDICES)
    assert rows.update(mask(0, 1, 2, 3, 4)) is None  # looked at in the next step
    kept = rows.update(mask(0, 7))
    assert kept.tolist() == [0, 5, 6, 7]  # three unbroken ones after step 1, one to fill up
    (values,) = rows.reduce(kept, torch.arange(8.0))
    assert rows.rows.tolist() == values.tolist() == [0, 5, 6, 7]
    assert rows.indices.tolist() == [100, 105, 106, 107]
    assert rows.mask.tolist() == [False, True, True, False]  # row 7 broke in step 2
    assert rows.moved(torch.ones(4), 0.0).tolist() == [0, 1, 1, 0]
    assert rows.only(torch.ones(4, dtype=torch.bool)).tolist() == rows.mask.tolist()


def test_device_keeps_broken_rows_broken_and_ends():
    rows = MaskedSet(IMAGES, INDICES)
    rows.update(mask(*range(8)))
    kept = rows.update(mask())
    assert kept is not None and not len(kept)
    (values,) = rows.reduce(kept, torch.arange(8.0))
    assert not len(values) and not len(rows.rows)


@pytest.mark.parametrize("longest_wait, expected", [(1, 63), (16, 7)])
def test_device_looks_seldom(monkeypatch, longest_wait, expected):
    looks = []
    copy = active._HostCopy.read
    monkeypatch.setattr(active._HostCopy, "read", lambda self: looks.append(1) or copy(self))
    rows = MaskedSet(IMAGES, INDICES, longest_wait)
    for _ in range(64):
        assert rows.update(mask()) is None
    assert len(looks) == expected  # 16: after 1, 2, 4, 8, 16, 32 and 48


@pytest.mark.parametrize(
    "free, rows, expected",
    [
        (True, [1, 5, 6], [1, 5, 6]),
        (False, [1, 5, 6], [0, 1, 5, 6]),
        (False, [7], [7]),
        (False, [], []),
        (False, [0, 2, 4, 6, 7], list(range(8))),
    ],
)
def test_selected(monkeypatch, free, rows, expected):
    monkeypatch.setattr(active, "reads_are_free", lambda device: free)
    assert active.selected(~mask(*rows)).tolist() == expected


@pytest.mark.parametrize("free", [True, False])
def test_assign(monkeypatch, free):
    monkeypatch.setattr(active, "reads_are_free", lambda device: free)
    into = torch.zeros(4, 2)
    where = torch.tensor([True, False, True])
    assign(into, torch.tensor([3, 0, 1]), where, torch.arange(1.0, 7.0).view(3, 2))
    assert into.tolist() == [[0, 0], [5, 6], [0, 0], [1, 2]]
