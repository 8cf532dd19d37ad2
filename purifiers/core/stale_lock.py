"""Removal of Snakemake's lock of a folder if the process that held it has died.

A killed Snakemake leaves its lock behind, and every later start would stop at it.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

HOST = "purifybench_host"
"""File in ``.snakemake`` with the name of the host that last started the workflow."""


def remove_stale_lock(folder: Path) -> None:
    """Remove the lock unless its holder may be alive; call it when the workflow is read.

    The lock stays while another Snakemake works in the folder, and where it is from another host,
    whose processes cannot be seen.

    Args:
        folder: working directory of the workflow.
    """
    state = folder / ".snakemake"
    note = state / HOST
    locks = sorted((state / "locks").glob("*"))
    here = socket.gethostname()
    if locks and (not note.exists() or note.read_text() != here or _at_work(folder)):
        return
    for lock in locks:
        lock.unlink(missing_ok=True)
    if locks:
        print("removed the lock of a killed Snakemake; continuing", file=sys.stderr)
    if not note.exists() or note.read_text() != here:
        state.mkdir(exist_ok=True)
        note.write_text(here)


def _at_work(folder: Path) -> bool:
    """Whether another process on this host is a Snakemake with this working directory.

    One that was started with ``--nolock`` holds no lock: the job of a cluster, which outlives a
    killed Snakemake.
    """
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            named = any(Path(word).name == "snakemake" for word in words[:4])
            if (
                named
                and "--nolock" not in words
                and process.pid != os.getpid()
                and Path(process.cwd()) == folder.resolve()
            ):
                return True
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    return False
