"""Provenance of a run: code, libraries, device and time."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any


@functools.cache
def git_commit() -> str:
    """Git commit of the code, ``unknown`` without git; ``+changes`` marks changed tracked files."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if changed else commit


@functools.cache
def processor() -> str:
    """Name, model and instruction sets of the processor, which affect rounding."""
    cpu_info = {"model name": platform.processor() or platform.machine()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text(errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        cpu_info |= {key.strip(): value.strip() for key, _, value in pairs}
    numbers = [
        f"{key} {cpu_info[key]}" for key in ("cpu family", "model", "stepping") if key in cpu_info
    ]
    flags = cpu_info.get("flags", "").split()
    instruction_sets = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags
    ]
    return " ".join([cpu_info["model name"], *numbers, *instruction_sets])


def version_of(package: str) -> str:
    """Installed version of a package, or ``"absent"``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def fingerprint(device: str = "cpu") -> dict[str, str]:
    """Properties that two runs must share for their results to be equal to the bit."""
    return {"torch": version_of("torch"), "device": device, "processor": processor()}


def provenance(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The provenance stored with every run."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "git": git_commit(),
        "purifybench": version_of("purifybench"),
        "python": platform.python_version(),
        "numpy": version_of("numpy"),
        "threads": threads,
        "finished": now,
        **fingerprint(device),
    }
