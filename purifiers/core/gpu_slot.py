"""One GPU per job: jobs that run beside each other on one machine each take a free one."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import IO

from purifiers.core.artifacts import hold_lock

VISIBLE = "CUDA_VISIBLE_DEVICES"
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


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: those of ``CUDA_VISIBLE_DEVICES``, else all."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].replace(" ", "").split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if listed.returncode == 0 else []
