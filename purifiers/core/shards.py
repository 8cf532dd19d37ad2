"""Per-image work on large sets: a batch in memory, everything else in a mapped file."""

from __future__ import annotations

import gc
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
) -> dict[str, int]:
    """Compute ``count`` rows batch by batch into ``path`` (.npy); a rerun goes on where it stopped.

    Rows are written through a memory map under a temporary name; what is done is recorded after
    each batch, so a kill at any moment repeats at most one batch. A batch that does not fit into
    the device's memory is halved until it does, and so are those after it.

    Args:
        shape: shape of one row.
        work: rows ``[start, stop)`` as an array (stop - start, *shape).
        batch_size: most rows per call of ``work``; part of the record, for reruns must agree.

    Returns:
        ``{"halved_batch": rows}`` if memory ran out, else nothing; rows are those of the calls
        that fitted.

    Raises:
        UserError: the unfinished file on disk does not fit, or the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    progress_path = path.with_name(path.name + ".progress.json")
    if path.exists():
        progress_path.unlink(missing_ok=True)
        return {}
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
            # before the new file is there: an old record would call its zeros done
            progress_path.unlink(missing_ok=True)
            _reserve(partial, count, shape, dtype)
    try:
        # reading refuses what is too short; "r+" would silently lengthen it with zeros
        np.lib.format.open_memmap(partial, mode="r")
        rows = np.lib.format.open_memmap(partial, mode="r+")
    except ValueError:
        raise UserError(f"{partial}: truncated; remove it and start again") from None
    progress = Progress(label, count, done=done)
    size, halved = batch_size, {}
    while done < count:
        stop = min(done + size, count)
        made = _within_memory(work, done, stop)
        if made is None:
            size = (stop - done) // 2
            halved = {"halved_batch": size}
            print(f"{label}: out of memory, going on with batches of {size}", file=sys.stderr)
            continue
        rows[done:stop] = made
        rows.flush()
        write_json(progress_path, {**expected, "done": stop})
        progress.add(stop - done)
        done = stop
    del rows
    os.replace(partial, path)
    progress_path.unlink(missing_ok=True)
    return halved


def _within_memory(
    work: Callable[[int, int], npt.NDArray], start: int, stop: int
) -> npt.NDArray | None:
    """What ``work`` makes, or None if memory ran out and there is something left to halve."""
    try:
        return work(start, stop)
    except (MemoryError, RuntimeError) as error:
        if stop - start == 1 or not out_of_memory(error):
            raise
    # outside the handler: its traceback held the tensors that did not fit
    gc.collect()
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says so; torch's own class is not imported here."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # torch's allocator on a processor, and the libraries behind it on a GPU
    return any(told in str(error) for told in ("can't allocate memory", "STATUS_ALLOC_FAILED"))


def _reserve(partial: Path, count: int, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
    """Create the file with its blocks, for a full disk must show here and not as a bus error."""
    rows = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=(count, *shape))
    del rows
    with partial.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(partial.stat().st_size, 1))
