"""One GPU per job: jobs that run beside each other on one machine each take a free one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

from purifiers.core.allocation import VISIBLE, visible_gpus
from purifiers.core.artifacts import hold_lock

WAIT = 1.0
"""Seconds between two searches for a free GPU."""


def claim_gpu(folder: Path, wait: float = WAIT) -> IO[str] | None:
    """Wait for a GPU that no other job uses, and make it the only one this process sees.

    Call it before torch initialises CUDA. With at most one visible GPU nothing happens, so the
    choice of a cluster's scheduler stands.

    Args:
        folder: holds one lock file per GPU; shared by all jobs of the machine.
        wait: seconds between two searches.

    Returns:
        The lock, which ends with the process or when it is closed; None if none was needed.

    Raises:
        UserError: the folder's file system has no locks.
    """
    names = visible_gpus()
    if len(names) < 2:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in names:
            lock = (folder / f"gpu-{name}.lock").open("w")
            if hold_lock(lock, wait=False):
                os.environ[VISIBLE] = name
                return lock
            lock.close()
        time.sleep(wait)
