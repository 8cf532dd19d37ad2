"""Score runs on disk, and which of a cell's runs are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.plan.cells import Cell

FailureOf = Callable[[str], str | None]
"""From the id of a score run to why it or one of its upstream runs failed, or None."""

DISTANCES = {"mean_l2": "attack_l2", "mean_linf": "attack_linf"}
"""Metrics that are means of a column of ``scores.parquet``: how far the attack went, whatever
purified its images afterwards."""


@dataclass(frozen=True)
class ScoreRun:
    """One finished score run.

    Attributes:
        folder: ``<runs>/score/<id>``.
        record: its ``run.json``.
    """

    id: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def attack(self) -> str:
        """Name of the attack's component, or ``"clean"``."""
        attack = self.record["spec"].get("attack")
        return str(attack["component"]) if isinstance(attack, Mapping) else "clean"

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per image, indexed by the image's index in its data set.

        Raises:
            UserError: an image occurs twice, or the run's summary tells another count.
        """
        frame = pd.read_parquet(self.folder / "scores.parquet").set_index("index").sort_index()
        told = (self.record["summary"]["n_correct"], self.record["summary"]["n"])
        found = (int(frame["correct"].sum()), len(frame))
        if told != found or not frame.index.is_unique:
            raise UserError(
                f"{self.folder}: scores.parquet has {found[0]} of {found[1]} correct, run.json "
                f"says {told[0]} of {told[1]}; delete the folder and score again"
            )
        return frame

    @property
    def correct(self) -> np.ndarray:
        """Whether each image is classified correctly, bool (n,), in the order of the indices."""
        return self.scores["correct"].to_numpy(dtype=bool)

    def value(self, metric: str) -> float | None:
        """A metric of this run in the unit of the tables: accuracy in percent, distances as means
        over the images, anything else as the run's summary has it; None if it has no such entry.
        """
        if metric == "accuracy":
            return 100.0 * float(self.correct.mean())
        if metric in DISTANCES:
            column = DISTANCES[metric]
            return float(self.scores[column].mean()) if column in self.scores else None
        stored = self.record["summary"].get(metric)
        return None if stored is None else float(stored)


@dataclass(frozen=True)
class Found:
    """The finished runs of a cell.

    Attributes:
        seeds: per seed that is complete, its score runs (more than one: worst of them).
        missing: verdict of a cell without a complete seed (``"not run"``, ``"failed"``,
            ``"not implemented"`` or ``"quoted"``), else ``""``.
        flags: why something is missing.
    """

    seeds: dict[int, tuple[ScoreRun, ...]]
    missing: str
    flags: tuple[str, ...]


@dataclass
class Runs:
    """The score runs below ``root``, each read once.

    Attributes:
        root: the folder that holds ``score/``.
        failure_of: tells whether a run that is not there has failed.
    """

    root: Path
    failure_of: FailureOf
    _read: dict[str, ScoreRun] = field(default_factory=dict, repr=False)

    def score(self, run_id: str) -> ScoreRun | None:
        """The score run of that id, or None if it has not finished.

        Raises:
            UserError: its files are not those that were recorded.
        """
        if run_id not in self._read:
            folder = RunFolder(self.root, "score", run_id)
            if not folder.complete():
                return None
            self._read[run_id] = ScoreRun(run_id, folder.path, folder.record())
        return self._read[run_id]

    def origin(
        self, score: ScoreRun
    ) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]] | None]:
        """Where scored images come from.

        Returns:
            The record of the attack's run (None where nothing is attacked or the record is gone),
            and the methods that purified, first to last (None if one of their records is gone).
        """
        images = score.record["spec"]["images"]
        methods: list[Mapping[str, Any]] = []
        while images["run"] is not None:
            folder = RunFolder(self.root, images["stage"], images["run"])
            if not folder.complete():
                return None, methods[::-1] if images["stage"] == "attack" else None
            record = folder.record(verify=False)
            if images["stage"] == "attack":
                return record, methods[::-1]
            methods.append(record["spec"]["method"])
            images = record["spec"]["images"]
        return None, methods[::-1]

    def find(self, cell: Cell) -> Found:
        """The runs of a cell, seed by seed.

        A seed counts only when all its runs have finished: the minimum over the attacks that
        happened to finish would be too high.
        """
        if cell.state != "planned":
            verdict = "not run" if cell.state == "configuration" else cell.state
            reason = cell.reason or ("nothing to run" if cell.state == "configuration" else "")
            return Found({}, verdict, (reason,) if reason else ())
        seeds: dict[int, tuple[ScoreRun, ...]] = {}
        waiting: list[int] = []
        failures: list[str] = []
        for seed, ids in zip(cell.seeds, cell.scores, strict=True):
            runs = {run_id: self.score(run_id) for run_id in ids}
            finished = tuple(run for run in runs.values() if run is not None)
            if ids and len(finished) == len(runs):
                seeds[seed] = finished
                continue
            told = [self.failure_of(run_id) for run_id, run in runs.items() if run is None]
            if why := next((failure for failure in told if failure), None):
                failures.append(f"seed {seed} failed: {why}")
            else:
                waiting.append(seed)
        flags = tuple(failures) + tuple(f"seed {seed} not run" for seed in waiting)
        if seeds:
            return Found(seeds, "", flags)
        return Found({}, "failed" if failures else "not run", tuple(failures))


def worst(cell: Cell, runs: tuple[ScoreRun, ...]) -> ScoreRun:
    """Of a cell's runs under one seed that of lowest accuracy; the first of equals.

    Raises:
        UserError: a worst-of cell of another metric than accuracy.
    """
    if len(runs) == 1:
        return runs[0]
    if cell.metric != "accuracy":
        raise UserError(
            f"{cell.document} of {cell.paper}, row {cell.row!r}, column {cell.column!r}: "
            f"worst_of needs the metric accuracy, not {cell.metric!r}"
        )
    return min(runs, key=lambda run: float(run.correct.mean()))
