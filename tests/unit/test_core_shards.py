"""Large sets are made batch by batch, and a kill repeats at most one batch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from purifiers.core import shards
from purifiers.core.errors import UserError
from purifiers.core.shards import fill

COUNT, SHAPE, BATCH = 23, (2, 3), 5


class Work:
    """Rows that depend on their place, and a log of what was asked for."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.kill_at = kill_at

    def __call__(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        if self.kill_at is not None and start >= self.kill_at:
            raise KeyboardInterrupt
        rows = np.arange(start, stop, dtype=np.float32)[:, None, None]
        return np.sin(rows + np.arange(6, dtype=np.float32).reshape(SHAPE))


def make(path, work, count=COUNT, shape=SHAPE, dtype=np.float32, batch_size=BATCH) -> None:
    fill(path, count, shape, dtype, work, batch_size, "test")


@pytest.fixture
def interrupted(tmp_path):
    """A file whose work was killed in the third batch, and the bytes of an undisturbed one."""
    whole, path = tmp_path / "whole.npy", tmp_path / "rows.npy"
    make(whole, Work())
    with pytest.raises(KeyboardInterrupt):
        make(path, Work(kill_at=10))
    return path, whole.read_bytes()


def test_all_rows_are_made_once(tmp_path):
    work, path = Work(), tmp_path / "below" / "rows.npy"
    make(path, work)
    assert work.asked == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    rows = np.load(path)
    assert rows.dtype == np.float32 and np.array_equal(rows, Work()(0, COUNT))
    assert [file.name for file in path.parent.iterdir()] == ["rows.npy"]
    make(path, work)  # what is there is not made again
    assert len(work.asked) == 5


def test_a_killed_work_ends_with_the_same_bytes(interrupted):
    path, expected = interrupted
    assert not path.exists()  # half a result is never read as whole
    work = Work()
    make(path, work)
    assert path.read_bytes() == expected
    assert work.asked == [(10, 15), (15, 20), (20, 23)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["rows.npy", "whole.npy"]


def test_a_kill_between_rows_and_record_repeats_one_batch(tmp_path, monkeypatch):
    path, work = tmp_path / "rows.npy", Work()
    write = shards.write_json

    def killed(target, content):
        if content["done"] == 15:
            raise KeyboardInterrupt
        write(target, content)

    monkeypatch.setattr(shards, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        make(path, work)
    monkeypatch.undo()
    make(path, work)
    assert np.array_equal(np.load(path), Work()(0, COUNT))
    assert work.asked.count((10, 15)) == 2 and len(work.asked) == 6


def test_a_kill_before_the_first_record_starts_anew(tmp_path):
    path = tmp_path / "rows.npy"
    with pytest.raises(KeyboardInterrupt):
        make(path, Work(kill_at=0))
    make(path, Work())
    assert np.array_equal(np.load(path), Work()(0, COUNT))


@pytest.mark.parametrize("kept", [0, 60, 200, -1])
def test_a_truncated_partial_is_refused(interrupted, kept):
    """Rows that are recorded as done are gone: going on would leave zeros in their place."""
    path, _ = interrupted
    partial = path.with_name("rows.npy.partial")
    partial.write_bytes(partial.read_bytes()[:kept])
    work = Work()
    with pytest.raises(UserError, match=r"rows\.npy\.partial: truncated; remove it"):
        make(path, work)
    assert work.asked == [] and not path.exists()


def test_a_lost_partial_is_made_anew(interrupted):
    path, expected = interrupted
    path.with_name("rows.npy.partial").unlink()
    make(path, Work())
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    "other",
    [{"count": 24}, {"shape": (3, 2)}, {"dtype": np.float64}, {"batch_size": 4}],
    ids=str,
)
def test_unfinished_work_of_another_kind_is_refused(interrupted, other):
    path, _ = interrupted
    with pytest.raises(UserError, match="another size; remove it"):
        make(path, Work(), **other)


def test_a_damaged_record_of_progress_is_refused(interrupted):
    path, _ = interrupted
    path.with_name("rows.npy.progress.json").write_text('{"done": 1')
    with pytest.raises(UserError, match="not readable as JSON"):
        make(path, Work())


def test_progress_is_recorded_after_each_batch(tmp_path):
    path, seen = tmp_path / "rows.npy", []

    def work(start, stop):
        record = path.with_name("rows.npy.progress.json")
        seen.append(json.loads(record.read_text())["done"] if record.exists() else 0)
        return Work()(start, stop)

    make(path, work)
    assert seen == [0, 5, 10, 15, 20]


def test_no_rows(tmp_path):
    make(tmp_path / "rows.npy", Work(), count=0)
    assert np.load(tmp_path / "rows.npy").shape == (0, *SHAPE)


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shards.os, "posix_fallocate", full)
    work = Work()
    with pytest.raises(UserError, match="no room to write"):
        make(tmp_path / "rows.npy", work)
    assert work.asked == []
