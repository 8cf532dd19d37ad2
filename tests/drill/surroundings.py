"""No room, read-only disks, little memory, a second head, files from tomorrow, a hanging job."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workspace import Workspace, make_workspace

from drill.artefacts import forget_after
from drill.kills import PAPERS
from drill.trials import Trial, copied, ends, started, working

DAY = 86_400.0
_NEVER = '"checkpoint_seconds": 86400'


WRITES = {
    "data set": ("dataset", "train_images.npy"),
    "checkpoint": ("classifier", "checkpoint"),
    "weights": ("classifier", "weights.safetensors"),
    "images": ("attack", "images.npy"),
    "predictions": ("predict", "logits.npy"),
    "scores": ("score", "scores.parquet"),
    "table": ("", "table_1.csv"),
    "picture": ("", "figure_1.png"),
}
"""Kind of a written file to its stage and name; documents have no stage. Records, manifests and
indices are smaller than what is written before them, so that only a full disk meets them."""


def surroundings(
    finished: Workspace, folder: Path, expected: dict[str, bytes], draw: random.Random, disks: int
) -> Iterator[Trial]:
    """Try each fault; ``disks`` disks of evenly spaced sizes are full."""
    for kind in WRITES:
        yield no_room(finished, folder, expected, kind)
    reason = _why_no_disk(folder)
    if reason:
        yield Trial("disk full", "", "not tried", reason)
        yield Trial("read-only results", "", "not tried", reason)
    else:
        whole = _size(finished.path / "results")
        for number in range(disks):
            yield _full_disk(folder, expected, whole * (number + 1) // (disks + 1))
        yield _read_only(finished, folder, expected)
    yield _little_memory(folder, expected)
    yield two_heads(folder, expected, 0.0)
    yield two_heads(folder, expected, draw.uniform(0.5, 2.0))
    yield files_from_tomorrow(finished, folder, expected)
    yield _hanging_job(folder, expected, draw)


def no_room(finished: Workspace, folder: Path, expected: dict[str, bytes], kind: str) -> Trial:
    """No file may become as large as the one of a kind, as under a quota; needs no root.

    The job of the file's stage, or the report, runs with this limit; afterwards everything without.
    """
    stage, name = WRITES[kind]
    workspace = copied(finished, folder)
    if stage:
        # a finished run has no checkpoint any more, which holds the weights and more
        written = "weights.safetensors" if name == "checkpoint" else name
        files = (workspace.runs / stage).glob(f"*/{written}")
        path = max(files, key=lambda path: path.stat().st_size)
        limit = path.stat().st_size - 1
        shutil.rmtree(path.parent)
        forget_after(workspace, stage)
        (batch,) = (workspace.runs / "batches" / stage).glob("*.spec.json")
        if kind == "weights":  # which are smaller than a checkpoint
            spec = batch.read_text()
            batch.write_text(re.sub(r'"checkpoint_seconds": [0-9.]+', _NEVER, spec))
        manifest = batch.with_name(batch.name.replace(".spec.", ".done."))
        manifest.unlink()
        arguments = ["run", str(batch), str(manifest)]
    else:
        below = workspace.path / "results" / "tables" / "tiny"
        path = max(below.glob(f"*/{name}"), key=lambda path: path.stat().st_size)
        limit = path.stat().st_size - 1
        arguments = ["report", "--scale", "tiny", f"{path.parent.name}/{path.stem}"]
    with _limited(resource.RLIMIT_FSIZE, limit):
        first = workspace.run("purifiers", *arguments)
    place = f"{kind}, over {limit} bytes"
    trial = _told(first, workspace, expected, "file too large", place)
    if trial.outcome == "refused" and not _names(trial.message, kind):
        return Trial(trial.kind, place, "unclear", f"another file: {trial.message}")
    return trial


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


def _why_no_disk(folder: Path) -> str:
    """Why no file system can be mounted here; empty if one can."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no program mount"
    if done.returncode:
        return f"a tmpfs cannot be mounted, which needs root: {' '.join(done.stderr.split())}"
    subprocess.run(["umount", "-l", str(folder)], check=True)
    return ""


def _full_disk(folder: Path, expected: dict[str, bytes], kibibytes: int) -> Trial:
    """The disk is full at some size; afterwards it grows."""
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    with _small_disk(workspace, kibibytes) as results:
        first = workspace.snakemake()
        grown = ["mount", "-o", "remount,size=4g", str(results)]
        subprocess.run(grown, check=True)
        return _told(first, workspace, expected, "disk full", f"at {kibibytes} KiB")


def _read_only(finished: Workspace, folder: Path, expected: dict[str, bytes]) -> Trial:
    """The results cannot be written; afterwards they can."""
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
        return _told(first, workspace, expected, "read-only results", "score")


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
    output = first.stdout + first.stderr
    lines = [line for line in output.splitlines() if "rror: " in line]
    if not lines or "Traceback (most recent call last)" in output:
        return Trial(kind, place, "unclear", output[-2000:])
    return Trial(kind, place, "refused", lines[0])


def _names(message: str, kind: str) -> bool:
    """Whether an error message names a file of a kind: of a table also its other forms."""
    stage, name = WRITES[kind]
    place = f"/{stage}/" if stage else "/tables/"
    return place in message and f"/{Path(name).stem}" in message and "no room" in message


@contextlib.contextmanager
def _limited(limit: int, value: int) -> Iterator[None]:
    """Lower a limit of the processes that start meanwhile."""
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))


def _little_memory(folder: Path, expected: dict[str, bytes]) -> Trial:
    """Jobs may not even load the libraries."""
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *PAPERS)
    limit = 1_400 << 20
    with _limited(resource.RLIMIT_AS, limit):
        first = workspace.snakemake()
    return _told(first, workspace, expected, "out of memory", f"{limit >> 20} MiB")


def two_heads(
    folder: Path, expected: dict[str, bytes], seconds: float, papers: Sequence[str] = PAPERS
) -> Trial:
    """Two commands on the same results: one is refused by a lock, or both end with these bytes.

    Args:
        seconds: time between the first one's first job and the start of the second one; 0: both
            start at once.
    """
    shutil.rmtree(folder, ignore_errors=True)
    workspace = make_workspace(folder, *papers)
    heads = [started(workspace)]
    if seconds:
        working(heads[0])
        time.sleep(seconds)
    heads.append(started(workspace))
    with ThreadPoolExecutor() as threads:  # each is read, so that none waits for its reader
        outputs = list(threads.map(lambda head: head.communicate()[0], heads))
    kind, place = "two heads", f"after {seconds:.1f} s" if seconds else "at once"
    failed = [out for head, out in zip(heads, outputs, strict=True) if head.returncode != 0]
    refused = [out for out in failed if "LockException" in out and "Traceback" not in out]
    if len(failed) > 1 or len(refused) != len(failed):
        return Trial(kind, place, "unclear", failed[-1][-2000:])
    trial = ends(workspace, expected, kind, place)
    if refused and trial.outcome == "continued":
        return Trial(kind, place, "refused", "LockException")
    return trial


def files_from_tomorrow(finished: Workspace, folder: Path, expected: dict[str, bytes]) -> Trial:
    """All finished work is dated tomorrow, as a clock that was set back leaves it."""
    workspace = copied(finished, folder)
    shutil.rmtree(workspace.runs / "score")
    shutil.rmtree(workspace.path / "results" / "tables")  # newer ones would need no score
    tomorrow = time.time() + DAY
    for path in (workspace.path / "results").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    return ends(workspace, expected, "files dated tomorrow", "score")


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
