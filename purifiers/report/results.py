"""Score runs on disk, and which of a cell's runs are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from purifiers.core.ancestry import image_history
from purifiers.core.artifacts import Record, RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    ImagesSpec,
    InformationSpec,
    MethodSpec,
    PurifySpec,
    ScoreSpec,
    TimeSpec,
)
from purifiers.plan.cells import Cell, Flag

FailureOf = Callable[[str], str | None]
"""From the id of a score run to why it or one of its upstream runs failed, or None."""

MEANS = {
    "mean_l2": "attack_l2",
    "mean_linf": "attack_linf",
    "mutual_information": "information",
    "seconds_per_image": "seconds",
}
"""Metrics that are means of a column of ``scores.parquet``. Distances: how far the attack went,
whatever purified its images afterwards."""


FLAGS = "cell_flags"
"""Column of an aggregate with the flags of a cell and of its runs, as objects."""

BUSY = 0.8
"""A processor that gave a timed job less than this share of the time had other work; our choice."""


@dataclass(frozen=True)
class ScoreRun:
    """One finished run of a stage that measures.

    Attributes:
        folder: ``<runs>/score/<id>``, or another stage's.
        record: its ``run.json``.
    """

    id: str
    folder: Path
    record: Record

    @property
    def attack(self) -> str:
        """Name of the attack's component, or ``"clean"``."""
        spec = self.record.spec
        attack = spec.attack if isinstance(spec, ScoreSpec) else None
        return "clean" if attack is None else attack.component

    @property
    def images(self) -> ImagesSpec:
        """The images that were measured."""
        spec = self.record.spec
        assert isinstance(spec, ScoreSpec | InformationSpec | TimeSpec)
        return spec.images

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per image, indexed by the image's index in its data set.

        Raises:
            UserError: an image occurs twice, or the run's summary tells another count.
        """
        frame = pd.read_parquet(self.folder / "scores.parquet").set_index("index").sort_index()
        summary = self.record.summary
        recorded = (summary.get("n_correct", 0), summary["n"])
        actual = (int(frame["correct"].sum()) if "correct" in frame else 0, len(frame))
        if recorded != actual or not frame.index.is_unique:
            raise UserError(
                f"{self.folder}: scores.parquet has {actual[0]} of {actual[1]} correct, run.json "
                f"records {recorded[0]} of {recorded[1]}; delete the folder and score again"
            )
        return frame

    @property
    def correct(self) -> np.ndarray:
        """Whether each image is classified correctly, bool (n,), in the order of the indices."""
        return self.scores["correct"].to_numpy(dtype=bool)

    def value(self, metric: str) -> float | None:
        """A metric of this run in the unit of the tables: accuracy in percent, the training time of
        the methods in minutes, ``MEANS`` over the images, anything else as the run's summary has
        it; None if it was not measured.
        """
        if metric == "accuracy":
            return 100.0 * float(self.correct.mean())
        if metric in MEANS:
            column = MEANS[metric]
            return float(self.scores[column].mean()) if column in self.scores else None
        if metric == "train_minutes":
            seconds = [fit["train_seconds"] for fit in self.fits if "train_seconds" in fit]
            return sum(seconds) / 60 if len(seconds) == len(self.fits) else None
        stored = self.record.summary.get(metric)
        return None if stored is None else float(stored)

    @property
    def fits(self) -> list[Mapping[str, Any]]:
        """Summaries of the runs that fitted this run's methods, empty of those that are gone; none
        of methods without weights."""
        methods = self.record.spec_as(TimeSpec).methods
        fitted = [method.run for method in methods if method.run]
        folders = [RunFolder(self.folder.parents[1], "purifier", run) for run in fitted]
        return [f.record(verify=False).summary if f.complete() else {} for f in folders]

    @property
    def device(self) -> str:
        """What the times of this run were taken on, and whether it had other work to do."""
        summary = self.record.summary
        threads = summary["threads"]
        device = f"{summary['device_name']}, {threads} thread{'s' if threads > 1 else ''}"
        own = summary["cpu_seconds_per_image"] / float(self.scores["seconds"].mean())
        waited = self.record.provenance["device"] == "cpu" and own < BUSY
        return f"{device}, busy with other work" if waited else device


@dataclass(frozen=True)
class CellRuns:
    """The finished runs of a cell.

    Attributes:
        seeds: per seed that is complete, its score runs (more than one: worst or mean of them).
        missing: verdict of a cell without a complete seed (``"not run"``, ``"failed"``,
            ``"not implemented"`` or ``"quoted"``), else ``""``.
        flags: why something is missing.
    """

    seeds: dict[int, tuple[ScoreRun, ...]]
    missing: str
    flags: tuple[Flag, ...]


@dataclass
class Results:
    """The score runs below ``root``, each read once.

    Attributes:
        root: the folder that holds ``score/``.
        failure_of: tells whether a run that is not there has failed.
    """

    root: Path
    failure_of: FailureOf
    _read: dict[str, ScoreRun] = field(default_factory=dict, repr=False)

    def score(self, run_id: str, stage: str = "score") -> ScoreRun | None:
        """The run of that id of a stage that measures, or None if it has not finished.

        Raises:
            UserError: its files are not those that were recorded.
        """
        if run_id not in self._read:
            folder = RunFolder(self.root, stage, run_id)
            if not folder.complete():
                return None
            self._read[run_id] = ScoreRun(run_id, folder.path, folder.record())
        return self._read[run_id]

    def origin(self, score: ScoreRun) -> tuple[Record | None, tuple[MethodSpec, ...] | None]:
        """Where scored images come from.

        Returns:
            The record of the attack's run (None where nothing is attacked or the record is gone),
            and the methods that purified, first to last (None if one of their records is gone).
        """
        methods: list[MethodSpec] = []
        for images, record in image_history(self.root, score.images):
            if images.stage == "attack":
                return record, tuple(methods[::-1])
            if record is None:
                return None, None
            methods.append(record.spec_as(PurifySpec).method)
        return None, tuple(methods[::-1])

    def find(self, cell: Cell) -> CellRuns:
        """The runs of a cell, seed by seed.

        A seed counts only when all its runs have finished: the minimum over the attacks that
        happened to finish would be too high.
        """
        if cell.state != "planned":
            verdict = "not run" if cell.state == "configuration" else cell.state
            reason = cell.reason or ("nothing to run" if cell.state == "configuration" else "")
            return CellRuns({}, verdict, (Flag("run", reason),) if reason else ())
        seeds: dict[int, tuple[ScoreRun, ...]] = {}
        waiting: list[Flag] = []
        failures: list[Flag] = []
        for seed, ids in zip(cell.seeds, cell.scores, strict=True):
            runs = {run_id: self.score(run_id, cell.stage) for run_id in ids}
            finished = tuple(run for run in runs.values() if run is not None)
            if ids and len(finished) == len(runs):
                seeds[seed] = finished
                continue
            causes = (self.failure_of(run_id) for run_id, run in runs.items() if run is None)
            if cause := next((cause for cause in causes if cause), None):
                failures.append(Flag("run", f"seed {seed} failed: {cause}"))
            else:
                waiting.append(Flag("run", f"seed {seed} not run"))
        if seeds:
            return CellRuns(seeds, "", (*failures, *waiting))
        return CellRuns({}, "failed" if failures else "not run", tuple(failures))


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
