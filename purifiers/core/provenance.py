"""Provenance of a run: code, libraries, device and time."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from purifiers.core.sources import PACKAGE


@functools.cache
def git_commit(sources: frozenset[Path] = frozenset(), package: Path = PACKAGE) -> str:
    """Git commit of the code; ``unknown`` without git, or if no commit holds the code.

    A package that is installed inside another repository is not part of that repository's commits.

    ``+changes`` marks tracked files of the package that differ from the commit, and ``sources``
    that differ from it or are not tracked.

    Args:
        sources: files that the result depends on.
        package: the folder of the package.
    """
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    if not commit or not _is_tracked(package):
        return "unknown"
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if changed or uncommitted(sources, package) else commit


@functools.cache
def uncommitted(sources: frozenset[Path], package: Path = PACKAGE) -> tuple[str, ...]:
    """The files among ``sources`` that git does not hold in this form: untracked or modified.

    Returns:
        Paths relative to the folder above the package, sorted; empty without git, and if git does
        not hold the package.
    """
    if not sources or not _is_tracked(package):
        return ()
    root = package.parent
    paths = [str(path.relative_to(root)) for path in sorted(sources)]
    tracked = set((_git(root, "ls-files", "-z", "--", *paths) or "").split("\0"))
    changed = _git(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *paths)
    if changed is None:  # no git, or no commit yet
        return ()
    modified = set(changed.split("\0"))
    return tuple(path for path in paths if path not in tracked or path in modified)


def _is_tracked(package: Path) -> bool:
    """Whether the repository around the package, if there is one, holds the package."""
    return bool(_git(package, "ls-files", "--", "__init__.py"))


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None if it fails."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


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


@functools.cache
def version_of(package: str) -> str:
    """Installed version of a package, or ``"absent"``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def fingerprint(device: str = "cpu") -> dict[str, str]:
    """Properties that two runs must share for their results to be equal to the bit."""
    return {"torch": version_of("torch"), "device": device, "processor": processor()}


def provenance(
    device: str = "cpu", threads: int = 1, sources: frozenset[Path] = frozenset()
) -> dict[str, Any]:
    """The provenance stored with every run.

    Args:
        sources: files of the run's components; ``uncommitted`` lists those that are not in the
            commit in this form.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "git": git_commit(sources),
        "uncommitted": list(uncommitted(sources)),
        "purifybench": version_of("purifybench"),
        "python": platform.python_version(),
        "numpy": version_of("numpy"),
        "threads": threads,
        "finished": now,
        **fingerprint(device),
    }
