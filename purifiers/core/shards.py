"""Resumable per-image work on large sets, one batch in memory at a time."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
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
    quiet: bool = False,
    halves: bool = True,
    resumes: bool = True,
) -> dict[str, int]:
    """Compute ``count`` rows batch by batch into ``path`` (.npy); a rerun continues.

    Rows are written through a memory map under a temporary name. The progress is recorded after
    each batch with the SHA-256 of all rows so far, so that a kill repeats at most one batch and a
    damaged row is never continued. A batch that exceeds the device's memory
    is halved until it fits; later batches keep the smaller size.

    Args:
        path: the file to write.
        count: number of rows.
        shape: shape of one row.
        dtype: type of the values.
        work: (start, stop) to the rows ``[start, stop)``, an array (stop - start, *shape).
        batch_size: largest number of rows per call of ``work``; must be the same in a rerun.
        label: begins the progress lines.
        quiet: print no progress.
        halves: whether a batch that exceeds the memory is halved; else it is an error.
        resumes: whether a rerun continues; else it starts again with the first batch.

    Returns:
        ``{"halved_batch": rows}`` with the rows per call that fitted, if memory ran out; else
        ``{}``.

    Raises:
        UserError: the unfinished file on disk is damaged or of another size, or the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    progress_path = path.with_name(path.name + ".progress.json")
    if path.exists():
        progress_path.unlink(missing_ok=True)
        return {}
    if not resumes:
        progress_path.unlink(missing_ok=True)
    expected = {
        "count": count,
        "shape": list(shape),
        "dtype": np.dtype(dtype).str,
        "batch_size": batch_size,
    }
    done, digest = 0, ""
    if partial.exists() and progress_path.exists():
        recorded = read_json(progress_path)
        done, digest = recorded.pop("done", 0), recorded.pop("sha256", "")
        if recorded != expected:
            raise UserError(
                f"{partial}: unfinished work of another size; remove it and start again"
            )
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if done == 0:
            # first, since an old record would count the zeros of the new file as done
            progress_path.unlink(missing_ok=True)
            _reserve(partial, count, shape, dtype)
    try:
        # mode "r" refuses a truncated file, which "r+" would silently extend with zeros
        np.lib.format.open_memmap(partial, mode="r")
        rows = np.lib.format.open_memmap(partial, mode="r+")
    except ValueError:
        raise UserError(f"{partial}: truncated; remove it and start again") from None
    rows_so_far = hashlib.sha256()
    for start in range(0, done, batch_size):
        rows_so_far.update(rows[start : min(start + batch_size, done)].tobytes())
    if done and rows_so_far.hexdigest() != digest:
        raise UserError(
            f"{partial}: damaged: the SHA-256 of its first {done} rows is not the one in "
            f"{progress_path.name}; remove it and start again"
        )
    progress = Progress(label, count, done=done, quiet=quiet)
    size, halved = batch_size, {}
    while done < count:
        stop = min(done + size, count)
        values = _within_memory(work, done, stop) if halves else work(done, stop)
        if values is None:
            size = (stop - done) // 2
            halved = {"halved_batch": size}
            print(f"{label}: out of memory, continuing with batches of {size}", file=sys.stderr)
            continue
        rows[done:stop] = values
        rows.flush()
        rows_so_far.update(rows[done:stop].tobytes())
        recorded = {**expected, "done": stop, "sha256": rows_so_far.hexdigest()}
        write_json(progress_path, recorded)
        progress.add(stop - done)
        done = stop
    del rows
    os.replace(partial, path)
    progress_path.unlink(missing_ok=True)
    return halved


def _within_memory(
    work: Callable[[int, int], npt.NDArray], start: int, stop: int
) -> npt.NDArray | None:
    """Rows of ``work``; None if memory ran out and the batch can be halved."""
    try:
        return work(start, stop)
    except (MemoryError, RuntimeError) as error:
        if stop - start == 1 or not out_of_memory(error):
            raise
    # outside the handler, whose traceback references the tensors that did not fit
    gc.collect()
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; torch is not imported to find out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # messages of torch's allocator on a CPU, and of its libraries on a GPU
    return any(
        message in str(error) for message in ("can't allocate memory", "STATUS_ALLOC_FAILED")
    )


def _reserve(partial: Path, count: int, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
    """Create the file with all its blocks; a full disk would be a bus error later."""
    rows = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(count, *shape))
    del rows
    with partial.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(partial.stat().st_size, 1))
