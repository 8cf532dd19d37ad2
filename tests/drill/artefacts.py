"""Damage of every kind of file: truncated, a bit flipped, swapped with another run's, deleted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

from workspace import Workspace

from drill.trials import Trial, copied, ends, reports, started
from purifiers.core.spec import SPECS

KINDS = {
    "record": "*/*/run.json",
    "weights": "*/*/weights.safetensors",
    "images": "*/*/images.npy",
    "predictions": "predict/*/*.npy",
    "data set": "dataset/*/*.npy",
    "scores": "*/*/*.parquet",
    "spec of a job": "batches/*/*.spec.json",
    "manifest of a job": "batches/*/*.done.json",
}
"""Kind of a finished run's file to its pattern below the runs folder."""

TRAINING = ("checkpoint",)
SET = ("images.npy.progress.json", "images.npy.partial")
UNFINISHED = {
    "checkpoint": ("checkpoint", TRAINING, ("classifier", "purifier")),
    "progress of a set": ("images.npy.progress.json", SET, ("attack", "purify")),
    "unfinished set": ("images.npy.partial", SET, ("attack", "purify")),
}
"""Kind of an unfinished run's file to its name, the files that show the run at work, and two
stages: the run of the first is damaged, that of the second is the other run."""

TABLES = {
    "table": "*/table_*.csv",
    "claims": "*/claims.csv",
    "table in Markdown": "*/table_*.md",
    "provenance of a table": "*/*.provenance.json",
    "picture": "*/*.png",
}
"""Kind of a written file to its pattern below the scale's tables."""

KEPT = ("table", "claims")
"""Those of them from which a report takes values whose runs are not here."""

DAMAGES = ("truncated", "bit flipped", "swapped", "deleted")
LAST_STAGES = ("predict", "score", "norm", "smooth", "trace", "information")
"""Stages whose runs are deleted before a trial, so that the damaged file is read again."""


def artefacts(
    finished: Workspace,
    folder: Path,
    expected: dict[str, bytes],
    draw: random.Random,
    count: int | None = None,
) -> Iterator[Trial]:
    """Damage one file of a finished run per kind and damage, each in a fresh copy.

    Args:
        count: so many of them, chosen at random; None: all.
    """
    for kind, damage in _some(KINDS, DAMAGES, draw, count):
        workspace = copied(finished, folder)
        candidates = sorted(workspace.runs.glob(KINDS[kind]))
        if not candidates:  # a paper without random methods has no predictions
            continue
        path = draw.choice(candidates)
        _forget(workspace, path)
        _spoil(path, damage, candidates, draw)
        place = f"{kind} of {path.parent.parent.name}" if kind == "record" else kind
        yield ends(workspace, expected, f"file {damage}", place)


def unfinished(
    finished: Workspace,
    folder: Path,
    expected: dict[str, bytes],
    draw: random.Random,
    count: int | None = None,
) -> Iterator[Trial]:
    """Damage one file of an unfinished run per kind and damage; its run is killed at work."""
    for kind, damage in _some(UNFINISHED, DAMAGES, draw, count):
        name, at_work, (stage, other_stage) = UNFINISHED[kind]
        other = [] if damage != "swapped" else _killed(finished, folder, other_stage, at_work)
        content = other[1].parent.joinpath(name).read_bytes() if other else b""
        workspace, seen = _killed(finished, folder, stage, at_work)
        path = seen.with_name(name)
        if other:
            path.write_bytes(content)
        else:
            _spoil(path, damage, (), draw)
        yield ends(workspace, expected, f"file {damage}", kind)


def tables(
    finished: Workspace,
    folder: Path,
    draw: random.Random,
    count: int | None = None,
) -> Iterator[Trial]:
    """Damage one written file per kind and damage, and report again.

    Once with all runs, and once without any: then the report keeps the values of the CSV.
    """
    below = finished.path / "results" / "tables" / "tiny"
    with_runs = [(kind, damage, True) for kind, damage in product(TABLES, DAMAGES)]
    # without runs nothing is left of a deleted table that could be believed
    without = [(kind, damage, False) for kind, damage in product(KEPT, DAMAGES[:3])]
    trials = with_runs + without
    for kind, damage, runs_are_here in trials if count is None else draw.sample(trials, count):
        candidates = sorted(below.glob(TABLES[kind]))
        if not candidates:
            continue
        workspace = copied(finished, folder)
        paths = [workspace.path / path.relative_to(finished.path) for path in candidates]
        # a paper without claims has only the line of their names
        path = draw.choice([p for p in paths if p.read_bytes().count(b"\n") > 1])
        restored: Callable[[], object] | None = None
        if not runs_are_here:
            shutil.rmtree(workspace.runs)
            restored = _restoring(finished, workspace, path)
        _spoil(path, damage, paths, draw)
        place = kind if runs_are_here else f"{kind}, runs elsewhere"
        original = (finished.path / path.relative_to(workspace.path)).read_bytes()
        yield reports(workspace, path, original, f"file {damage}", place, restored)


def _some(
    kinds: dict[str, object], damages: Sequence[str], draw: random.Random, count: int | None
) -> list[tuple[str, str]]:
    pairs = list(product(kinds, damages))
    return pairs if count is None else draw.sample(pairs, count)


def _restoring(finished: Workspace, workspace: Workspace, path: Path) -> Callable[[], None]:
    """Restore a CSV and its provenance, as ``git checkout`` does with committed ones."""

    def restore() -> None:
        for file in (path, path.with_suffix(".provenance.json")):
            original = finished.path / file.relative_to(workspace.path)
            if original.exists():
                shutil.copyfile(original, file)

    return restore


def _killed(
    finished: Workspace, folder: Path, stage: str, at_work: Sequence[str]
) -> tuple[Workspace, Path]:
    """A copy in which all processes were killed while a run of a stage was unfinished.

    Returns:
        The copy, and the first of the files ``at_work`` of that run.
    """
    workspace = copied(finished, folder)
    shutil.rmtree(workspace.runs / stage)
    forget_after(workspace, stage)
    head = started(workspace)
    while True:
        seen = [path for path in workspace.runs.glob(f"{stage}/*/{at_work[0]}")]
        if seen and all(seen[0].with_name(name).exists() for name in at_work):
            break
        if head.poll() is not None:
            raise RuntimeError(f"{stage} ended before {at_work[0]}: {head.communicate()[0]}")
        time.sleep(0.002)
    os.killpg(head.pid, signal.SIGKILL)
    head.communicate()
    return workspace, seen[0]


def forget_after(workspace: Workspace, stage: str) -> None:
    """Delete tables and the runs of all later stages, which would not need this one's any more."""
    shutil.rmtree(workspace.path / "results" / "tables")
    stages = list(SPECS)
    for later in stages[stages.index(stage) + 1 :]:
        shutil.rmtree(workspace.runs / later, ignore_errors=True)


def _forget(workspace: Workspace, kept: Path) -> None:
    """Delete measurements and tables, except the run of the file that will be damaged."""
    shutil.rmtree(workspace.path / "results" / "tables")
    for stage in LAST_STAGES:
        for run in (workspace.runs / stage).glob("*"):
            if run != kept.parent:
                shutil.rmtree(run)


def _spoil(path: Path, damage: str, alike: Sequence[Path], draw: random.Random) -> None:
    """Damage a file that has content."""
    content = bytearray(path.read_bytes())
    if not content:
        raise RuntimeError(f"{path}: empty, no damage would change it")
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "swapped":
        others = [other for other in alike if other != path and other.exists()]
        different = [other for other in others if other.read_bytes() != bytes(content)]
        path.write_bytes(draw.choice(different).read_bytes() if different else content[::-1])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
