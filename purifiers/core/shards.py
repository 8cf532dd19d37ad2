"""Per-image work on large sets: a batch in memory, everything else in a mapped file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from purifiers.core.artifacts import read_json, room_for, write_json
from purifiers.core.errors import UserError
from purifiers.core.progress import Progress


def fill(
    path: Path,
    count: int,
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    work: Callable[[int, int], npt.NDArray],
    batch_size: int,
    label: str,
) -> None:
    """Compute ``count`` rows batch by batch into ``path`` (.npy); a rerun goes on where it stopped.

    Rows are written through a memory map under a temporary name; what is done is recorded after
    each batch, so a kill at any moment repeats at most one batch.

    Args:
        shape: shape of one row.
        work: rows ``[start, stop)`` as an array (stop - start, *shape).
        batch_size: rows per call of ``work``; part of the record, for reruns must agree.

    Raises:
        UserError: the unfinished file on disk does not fit, or the disk is full.
    """
    if path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    progress_path = path.with_name(path.name + ".progress.json")
    expected = {
        "count": count,
        "shape": list(shape),
        "dtype": np.dtype(dtype).str,
        "batch_size": batch_size,
    }
    done = 0
    if partial.exists() and progress_path.exists():
        found = read_json(progress_path)
        done = found.pop("done")
        if found != expected:
            raise UserError(
                f"{partial}: unfinished work of another size; remove it and start again"
            )
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if done == 0:
            _reserve(partial, count, shape, dtype)
    try:
        # reading refuses what is too short; "r+" would silently lengthen it with zeros
        np.lib.format.open_memmap(partial, mode="r")
        rows = np.lib.format.open_memmap(partial, mode="r+")
    except ValueError:
        raise UserError(f"{partial}: truncated; remove it and start again") from None
    progress = Progress(label, count, done=done)
    for start in range(done, count, batch_size):
        stop = min(start + batch_size, count)
        rows[start:stop] = work(start, stop)
        rows.flush()
        write_json(progress_path, {**expected, "done": stop})
        progress.add(stop - start)
    del rows
    os.replace(partial, path)
    progress_path.unlink(missing_ok=True)


def _reserve(partial: Path, count: int, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
    """Create the file with its blocks, for a full disk must show here and not as a bus error."""
    rows = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(count, *shape))
    del rows
    with partial.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(partial.stat().st_size, 1))
