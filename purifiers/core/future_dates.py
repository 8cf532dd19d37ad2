"""Files dated in the future, as a clock that was set back leaves them.

Snakemake refuses a result that is older than what it was made from.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TOLERANCE = 1.0
"""Seconds by which the clocks of a file server and this host may differ; our choice."""


def date_back(folders: Sequence[Path]) -> int:
    """Give the files below the folders that are dated in the future the present date.

    Results made from them are then older at worst, and written anew. A file that cannot be changed
    keeps its date.

    Args:
        folders: need not exist.

    Returns:
        Number of such files.
    """
    now = time.time()
    late = [path for path in _files(folders) if _date(path) > now + TOLERANCE]
    for path in late:
        with contextlib.suppress(OSError):
            os.utime(path, (now, now), follow_symlinks=False)
    if late:
        print(
            f"{len(late)} files were dated in the future, such as {late[0]}; they are dated now",
            file=sys.stderr,
        )
    return len(late)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for where, _, names in os.walk(folder):
            yield from (Path(where) / name for name in names)


def _date(path: Path) -> float:
    """When the file was changed; 0 if another process has removed it meanwhile."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
