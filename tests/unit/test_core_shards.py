"""Large sets are made batch by batch, and a kill repeats at most one batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

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


def test_work_that_does_not_resume_starts_again(interrupted):
    path, expected = interrupted
    work = Work()
    fill(path, COUNT, SHAPE, np.float32, work, BATCH, "test", resumes=False)
    assert work.asked[0] == (0, 5) and len(work.asked) == 5
    assert path.read_bytes() == expected
    fill(path, COUNT, SHAPE, np.float32, work, BATCH, "test", resumes=False)
    assert len(work.asked) == 5  # a complete file is not made again


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


@pytest.mark.parametrize("damage", ["flipped row", "flipped progress", "progress of another run"])
def test_damaged_rows_are_not_continued(interrupted, damage):
    path, expected = interrupted
    partial, progress = (path.with_name(f"rows.npy.{end}") for end in ("partial", "progress.json"))
    if damage == "flipped row":
        content = bytearray(partial.read_bytes())
        content[-4 * 6 * COUNT + 7] ^= 1  # in the first row
        partial.write_bytes(content)
    else:
        record = json.loads(progress.read_text())
        record["done"] = 15 if damage == "flipped progress" else record["done"]
        record["sha256"] = record["sha256"] if damage == "flipped progress" else "0" * 64
        progress.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"damaged: the SHA-256 .* remove it and start again"):
        make(path, Work())
    partial.unlink()
    make(path, Work())
    assert path.read_bytes() == expected


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


# Memory


class Hungry(Work):
    """Runs out of memory above ``most`` rows at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def __call__(self, start: int, stop: int) -> np.ndarray:
        rows = super().__call__(start, stop)
        if stop - start > self.most:
            raise self.error
        return rows


SHORT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved(tmp_path, error, capsys):
    """8 -> 4 -> 2 rows at once, and no more than 2 from then on."""
    path, work = tmp_path / "rows.npy", Hungry(3, error)
    summary = fill(path, COUNT, SHAPE, np.float32, work, 8, "test")
    assert summary == {"halved_batch": 2}
    assert np.array_equal(np.load(path), Work()(0, COUNT))
    assert work.asked[:4] == [(0, 8), (0, 4), (0, 2), (2, 4)]
    assert all(stop - start <= 2 for start, stop in work.asked[2:])
    assert "out of memory, continuing with batches of 2" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_what_fits_is_not_halved(tmp_path):
    work = Hungry(5, SHORT_OF_MEMORY[0])
    assert fill(tmp_path / "rows.npy", COUNT, SHAPE, np.float32, work, BATCH, "test") == {}


def test_a_single_row_that_does_not_fit_is_an_error(tmp_path):
    work = Hungry(0, SHORT_OF_MEMORY[0])
    with pytest.raises(torch.OutOfMemoryError):
        make(tmp_path / "rows.npy", work)
    assert work.asked == [(0, 5), (0, 2), (0, 1)] and not (tmp_path / "rows.npy").exists()


def test_other_errors_halve_nothing(tmp_path):
    work = Hungry(3, RuntimeError("the model gave logits that are not finite"))
    with pytest.raises(RuntimeError, match="not finite"):
        make(tmp_path / "rows.npy", work)
    assert work.asked == [(0, 5)]


def test_halved_work_goes_on_where_it_was_killed(tmp_path):
    """The rerun starts with whole batches; the record does not change with the halving."""
    path = tmp_path / "rows.npy"
    first = Hungry(2, SHORT_OF_MEMORY[0])
    first.kill_at = 12
    with pytest.raises(KeyboardInterrupt):
        fill(path, COUNT, SHAPE, np.float32, first, 8, "test")
    again = Work()
    assert fill(path, COUNT, SHAPE, np.float32, again, 8, "test") == {}
    assert again.asked == [(12, 20), (20, 23)]
    assert np.array_equal(np.load(path), Work()(0, COUNT))


def test_a_record_without_its_file_is_no_work_done(interrupted):
    """Killed again before its first batch, the new file would be taken for half done."""
    path, expected = interrupted
    path.with_name("rows.npy.partial").unlink()
    with pytest.raises(KeyboardInterrupt):
        make(path, Work(kill_at=0))
    work = Work()
    make(path, work)
    assert work.asked[0] == (0, 5)
    assert path.read_bytes() == expected


def test_a_record_behind_a_finished_file_goes(interrupted):
    """Killed between the last two steps, it would outlive a file that is removed later."""
    path, _ = interrupted
    record = path.with_name("rows.npy.progress.json").read_text()
    make(path, Work())
    path.with_name("rows.npy.progress.json").write_text(record)
    make(path, Work(kill_at=0))
    assert [file.name for file in path.parent.glob("rows*")] == ["rows.npy"]
