"""Where a number came from: code, libraries, machine, time."""

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
    """The commit the code stands at, with ``+changes`` where files differ from it."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if changed else commit


@functools.cache
def processor() -> str:
    """Name and instruction sets of the processor, as far as they decide rounding."""
    told = {"model name": platform.processor() or platform.machine()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text(errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        told |= {key.strip(): value.strip() for key, _, value in pairs}
    numbers = [f"{key} {told[key]}" for key in ("cpu family", "model", "stepping") if key in told]
    flags = told.get("flags", "").split()
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([told["model name"], *numbers, *wanted])


def version_of(package: str) -> str:
    """Installed version of a package, or ``"absent"``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def fingerprint(device: str = "cpu") -> dict[str, str]:
    """What must agree for two runs to agree to the bit."""
    return {"torch": version_of("torch"), "device": device, "processor": processor()}


def provenance(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The provenance that is stored with every run."""
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
