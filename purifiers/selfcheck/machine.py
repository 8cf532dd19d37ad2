"""Device, driver and versions of a self-check."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

import torch

from purifiers.core.provenance import git_commit, processor, version_of
from purifiers.stages.throughput import device_kind

PACKAGES = ("purifybench", "numpy", "pandas", "scikit-learn", "safetensors", "pydantic", "scipy")


def described(device: str) -> dict[str, Any]:
    """Entries that begin ``selfcheck.json``.

    ``kind`` is the device kind of :mod:`purifiers.plan.throughput`, ``card`` the device's name.
    """
    on_gpu = device == "cuda"
    return {
        "device": device,
        "kind": device_kind(device),
        "card": torch.cuda.get_device_name() if on_gpu else processor(),
        "driver": driver() if on_gpu else "",
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "processor": processor(),
        "git": git_commit(),
    }


def driver() -> str:
    """Version of NVIDIA's driver; empty if ``nvidia-smi`` cannot be run."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.split("\n")[0].strip() if process.returncode == 0 else ""
