"""What a cluster's scheduler has allocated to this process, and whether torch can use it."""

from __future__ import annotations

import os
import platform
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
SLURM_JOB = "SLURM_JOB_ID"
"""Set by Slurm in every job (sbatch(1), output environment variables)."""
NONE = ("-1", "NoDevFiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` for no GPU: CUDA's, and Slurm's for jobs without GPU."""


def in_slurm_job() -> bool:
    """Whether a Slurm job started this process."""
    return SLURM_JOB in os.environ


def this_process() -> str:
    """Describe this process, so that a user can find and end it."""
    job = os.environ.get(SLURM_JOB)
    name = f"Slurm job {job}" if job else f"process {os.getpid()}"
    return f"{name} on {platform.node()}"


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: those of ``CUDA_VISIBLE_DEVICES``, else all."""
    if VISIBLE in os.environ:
        names = os.environ[VISIBLE].replace(" ", "").split(",")
        return [name for name in names if name and name not in NONE]
    return [str(number) for number in range(len(_nvidia_smi("-L", "GPU ")))]


def driver_version() -> str:
    """Version of NVIDIA's driver; ``none`` without one."""
    lines = _nvidia_smi("--query-gpu=driver_version --format=csv,noheader")
    return lines[0].strip() if lines else "none"


def _nvidia_smi(arguments: str, prefix: str = "") -> list[str]:
    """Lines of the program's output that start with ``prefix``; none if it fails."""
    command = ["nvidia-smi", *arguments.split()]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith(prefix)]
    return lines if listed.returncode == 0 else []
