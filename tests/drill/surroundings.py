"""Full and read-only disks, too little memory, a second head, a clock set back, a hanging job."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from workspace import Workspace, make_workspace

from drill.kills import PAPERS
from drill.trials import Trial, copied, ends, started, working

DAY = 86_400.0


def surroundings(
    finished: Workspace, folder: Path, expected: dict[str, bytes], draw: random.Random, disks: int
) -> Iterator[Trial]:
    """Try each fault; those of disks need root, ``disks`` of them are full at another place."""
    for _ in range(disks):
        yield from _full_disk(finished, folder, expected, draw)
    yield from _read_only(finished, folder, expected)
    yield _little_memory(folder, expected)
    yield two_heads(folder, expected, draw)
    yield clock_set_back(finished, folder, expected)
    yield _hanging_job(folder, expected, draw)


@contextlib.contextmanager
def _small_disk(workspace: Workspace, kibibytes: int) -> Iterator[Path]:
    """Mount a tmpfs in place of ``results``."""
    results = workspace.path / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    options = f"size={kibibytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(results)], check=True)
    try:
        yield results
    finally:
        subprocess.run(["umount", "-l", str(results)], check=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


def _full_disk(
    finished: Workspace, folder: Path, expected: dict[str, bytes], draw: random.Random
) -> Iterator[Trial]:
    """The disk fills up at a random place; afterwards it grows."""
    if os.geteuid() != 0:
        return
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    room = draw.randrange(64, max(65, _size(finished.path / "results")))
    with _small_disk(workspace, room) as results:
        first = workspace.snakemake()
        grown = ["mount", "-o", "remount,size=4g", str(results)]
        subprocess.run(grown, check=True)
        yield _told(first, workspace, expected, "disk full", f"at {room} KiB")


def _read_only(finished: Workspace, folder: Path, expected: dict[str, bytes]) -> Iterator[Trial]:
    """The results cannot be written; afterwards they can."""
    if os.geteuid() != 0:
        return
    workspace = copied(finished, folder)
    kept = workspace.path / "kept"
    shutil.move(workspace.path / "results", kept)
    with _small_disk(workspace, 1 << 20) as results:
        shutil.copytree(kept, results, dirs_exist_ok=True)
        shutil.rmtree(results / "runs" / "score")
        shutil.rmtree(results / "tables")
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        first = workspace.snakemake()
        subprocess.run(["mount", "-o", "remount,rw", str(results)], check=True)
        yield _told(first, workspace, expected, "read-only results", "score")


def _told(
    first: subprocess.CompletedProcess[str],
    workspace: Workspace,
    expected: dict[str, bytes],
    kind: str,
    place: str,
) -> Trial:
    """Judge a command that had to fail, and the same one when its cause is gone."""
    afterwards = ends(workspace, expected, kind, place)
    if afterwards.outcome != "continued" or first.returncode == 0:
        return afterwards
    lines = [line for line in first.stdout.splitlines() if "rror: " in line]
    clear = lines and "Traceback (most recent call last)" not in first.stdout
    if not clear:
        return Trial(kind, place, "unclear", first.stdout[-2000:])
    return Trial(kind, place, "refused", lines[0])


def _little_memory(folder: Path, expected: dict[str, bytes]) -> Trial:
    """Jobs may not even load the libraries."""
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    limit = 1_400 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        first = workspace.snakemake()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return _told(first, workspace, expected, "out of memory", f"{limit >> 20} MiB")


def two_heads(folder: Path, expected: dict[str, bytes], draw: random.Random) -> Trial:
    """A second command starts while the first one works."""
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    first = started(workspace)
    working(first)
    time.sleep(draw.uniform(0.0, 2.0))
    second = workspace.snakemake()
    first.communicate()
    if second.returncode == 0 or "LockException" not in second.stdout:
        return Trial("two heads", "", "unclear", second.stdout[-2000:])
    return ends(workspace, expected, "two heads", "")


def clock_set_back(finished: Workspace, folder: Path, expected: dict[str, bytes]) -> Trial:
    """All finished work is from tomorrow."""
    workspace = copied(finished, folder)
    shutil.rmtree(workspace.runs / "score")
    shutil.rmtree(workspace.path / "results" / "tables")  # newer ones would need no score
    tomorrow = time.time() + DAY
    for path in (workspace.path / "results").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    return ends(workspace, expected, "clock set back", "score")


def _hanging_job(folder: Path, expected: dict[str, bytes], draw: random.Random) -> Trial:
    """A job stops; a time limit ends head and job, as a scheduler does."""
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    head = started(workspace)
    jobs = working(head)
    time.sleep(draw.uniform(0.0, 2.0))
    for job in jobs:
        if job.is_running():
            job.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    os.killpg(head.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(10)
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    return ends(workspace, expected, "hanging job", "")
