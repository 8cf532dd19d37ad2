"""Damage of every kind of file: truncated, a bit flipped, swapped with another run's, deleted."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from workspace import Workspace

from drill.trials import Trial, copied, ends

KINDS = {
    "record": "*/*/run.json",
    "weights": "*/*/weights.safetensors",
    "images": "*/*/images.npy",
    "predictions": "*/*/*.npy",
    "data set": "dataset/*/*.npy",
    "scores": "*/*/*.parquet",
    "spec of a job": "batches/*/*.spec.json",
    "manifest of a job": "batches/*/*.done.json",
    "table": "../tables/tiny/*/*.csv",
}
"""Kind of a file to its pattern below the runs folder."""

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
    """Damage one file per kind and damage, each in a fresh copy.

    Args:
        count: so many of them, chosen at random; None: all.
    """
    pairs = [(kind, damage) for kind in KINDS for damage in DAMAGES]
    for kind, damage in pairs if count is None else draw.sample(pairs, count):
        workspace = copied(finished, folder)
        candidates = sorted(workspace.runs.glob(KINDS[kind]))
        if kind == "predictions":
            candidates = [p for p in candidates if p.parent.parent.name == "predict"]
        if not candidates:  # a paper without random methods has no predictions
            continue
        path = draw.choice(candidates)
        _forget(workspace, path)
        _spoil(path, damage, candidates, draw)
        place = f"{kind} of {path.parent.parent.name}" if kind == "record" else kind
        yield ends(workspace, expected, f"file {damage}", place)


def _forget(workspace: Workspace, kept: Path) -> None:
    """Delete measurements and tables, except the run of the file that will be damaged."""
    shutil.rmtree(workspace.path / "results" / "tables", ignore_errors=kept.suffix == ".csv")
    if kept.suffix == ".csv":
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
    for stage in LAST_STAGES:
        for run in (workspace.runs / stage).glob("*"):
            if run != kept.parent:
                shutil.rmtree(run)


def _spoil(path: Path, damage: str, alike: list[Path], draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "swapped":
        others = [other for other in alike if other != path and other.exists()]
        different = [other for other in others if other.read_bytes() != bytes(content)]
        path.write_bytes(draw.choice(different).read_bytes() if different else content[::-1])
    elif content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
