"""Read the finished runs of cells from disk."""

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
    MethodSpec,
    PredictSpec,
    PurifySpec,
    ScoreSpec,
    TimeSpec,
)
from purifiers.plan.cells import Cell, Flag

FailureOf = Callable[[str], str | None]
"""Maps the id of a score run to why it or one of its ancestors failed, or None."""

COUNTED = ("accuracy", "smoothed_accuracy", "smoothed_prediction")
"""Metrics that are shares of correct images, in percent; of smoothing by CERTIFY and by PREDICT."""

MEANS = {
    "mean_l2": "attack_l2",
    "mean_linf": "attack_linf",
    "mutual_information": "information",
    "seconds_per_image": "seconds",
    "score_norm": "score_norm",
    "purified_score_norm": "score_norm",
    "certified_radius": "radius",
    "attacked_distance": "attacked",
    "purified_distance": "purified",
}
"""Metric to the column of ``scores.parquet`` whose mean it is. Distances are between the clean and
the adversarial image, before any purification."""

LENGTHS = (
    *("mean_l2", "mean_linf", "score_norm", "purified_score_norm", "certified_radius"),
    *("attacked_distance", "purified_distance"),
)
"""Metrics of ``MEANS`` whose values are of one image each. The terms of mutual information depend
on the other images, and times on the machine."""

Origin = tuple[Record | None, tuple[MethodSpec, ...] | None]
"""An attack's record and the methods after it, see :meth:`Results.origin`."""

FLAGS = "cell_flags"
"""Column of an aggregate with the flags of a cell and its runs, as objects."""

REPORTS = " reports: "
"""Between an attack and what its package reported about the attacked model, in a flag's text."""

BUSY = 0.8
"""Smallest share of processor time at which a timed job counts as undisturbed (our choice)."""


@dataclass(frozen=True)
class ScoreRun:
    """One finished run of a measuring stage.

    Attributes:
        id: id of the run.
        folder: ``<runs>/score/<id>``, or the folder of another stage.
        record: content of its ``run.json``.
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
        """Spec of the measured images."""
        images = getattr(self.record.spec, "images", None)
        assert isinstance(images, ImagesSpec)
        return images

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per image, indexed by the image's index in its data set.

        Raises:
            UserError: an image occurs twice, or the counts differ from the run's summary.
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
        """Compute a metric of this run in the unit of the tables; None if it was not measured.

        Accuracies are in percent, the training time of the methods in minutes. Metrics in ``MEANS``
        are means over the images. Any other metric is taken from the run's summary.
        """
        if metric in COUNTED:
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
        """Summaries of the runs that fitted this run's methods.

        A deleted run has an empty summary. Methods that are not fitted have none.
        """
        methods = self.record.spec_as(TimeSpec).methods
        fitted = [method.run for method in methods if method.run]
        folders = [RunFolder(self.folder.parents[1], "purifier", run) for run in fitted]
        return [f.record(verify=False).summary if f.complete() else {} for f in folders]

    @property
    def device(self) -> str:
        """Device on which this run was timed, and whether it was busy with other work."""
        summary = self.record.summary
        threads = summary["threads"]
        device = f"{summary['device_name']}, {threads} thread{'s' if threads > 1 else ''}"
        cpu_share = summary["cpu_seconds_per_image"] / float(self.scores["seconds"].mean())
        busy = self.record.provenance["device"] == "cpu" and cpu_share < BUSY
        return f"{device}, busy with other work" if busy else device


@dataclass(frozen=True)
class CellRuns:
    """The finished runs of a cell.

    Attributes:
        seeds: the score runs of each complete seed; several runs are combined.
        missing: verdict of a cell without a complete seed (``"not run"``, ``"failed"``,
            ``"not implemented"`` or ``"quoted"``), else ``""``.
        flags: reasons for missing runs.
    """

    seeds: dict[int, tuple[ScoreRun, ...]]
    missing: str
    flags: tuple[Flag, ...]


@dataclass
class Results:
    """The finished runs below ``root``, each read once.

    Attributes:
        root: the folder that holds ``score/``.
        failure_of: see :data:`FailureOf`.
    """

    root: Path
    failure_of: FailureOf
    _read: dict[str, ScoreRun] = field(default_factory=dict, repr=False)
    _origins: dict[str, Origin] = field(default_factory=dict, repr=False)
    _reported: dict[str, Any] = field(default_factory=dict, repr=False)

    def score(self, run_id: str, stage: str = "score") -> ScoreRun | None:
        """Read a run of a measuring stage; None if it has not finished.

        Raises:
            UserError: its files differ from the recorded checksums.
        """
        if run_id not in self._read:
            folder = RunFolder(self.root, stage, run_id)
            if not folder.complete():
                return None
            self._read[run_id] = ScoreRun(run_id, folder.path, folder.record())
        return self._read[run_id]

    def per_image(self, cell: Cell) -> np.ndarray:
        """A metric of ``MEANS`` of all images and finished seeds of a cell, one after the other."""
        runs = [run for seed in self.find(cell).seeds.values() for run in seed]
        values = [run.scores[MEANS[cell.metric]].to_numpy() for run in runs]
        return np.concatenate(values) if values else np.array([])

    def origin(self, score: ScoreRun) -> Origin:
        """Trace scored images back to their attack.

        Returns:
            The record of the attack's run (None for clean images or if the record is missing), and
            the methods that purified the images, first to last (None if a record is missing).
        """
        if score.id not in self._origins:
            self._origins[score.id] = self._traced(score)
        return self._origins[score.id]

    def _traced(self, score: ScoreRun) -> Origin:
        methods: list[MethodSpec] = []
        spec = score.record.spec
        for run in spec.predictions[:1] if isinstance(spec, ScoreSpec) else ():
            folder = RunFolder(self.root, "predict", run)
            if not folder.complete():
                return None, None
            methods += folder.record(verify=False).spec_as(PredictSpec).methods[::-1]
        for images, record in image_history(self.root, score.images):
            if images.stage == "attack":
                return record, tuple(methods[::-1])
            if record is None:
                return None, None
            methods.append(record.spec_as(PurifySpec).method)
        return None, tuple(methods[::-1])

    def find(self, cell: Cell) -> CellRuns:
        """Read the finished runs of a cell, seed by seed.

        A seed counts only when all its runs have finished, because the minimum over some of the
        attacks would be too high.
        """
        if cell.state != "planned":
            verdict = "not run" if cell.state == "configuration" else cell.state
            reason = cell.reason or ("nothing to run" if cell.state == "configuration" else "")
            return CellRuns({}, verdict, (Flag("run", reason),) if reason else ())
        seeds: dict[int, tuple[ScoreRun, ...]] = {}
        not_run: list[Flag] = []
        failures: list[Flag] = []
        for seed, ids in zip(cell.seeds, cell.scores, strict=True):
            runs = {run_id: self.score(run_id, cell.stage) for run_id in ids}
            finished = tuple(_judged_by(run, cell) for run in runs.values() if run is not None)
            if ids and len(finished) == len(runs):
                seeds[seed] = finished
                continue
            causes = (self.failure_of(run_id) for run_id, run in runs.items() if run is None)
            if cause := next((cause for cause in causes if cause), None):
                failures.append(Flag("run", f"seed {seed} failed: {cause}"))
            else:
                not_run.append(Flag("run", f"seed {seed} not run"))
        if seeds:
            reported = self._reported_elsewhere(seeds) if cell.metric == "accuracy" else ()
            return CellRuns(seeds, "", (*failures, *not_run, *reported, *self._flags(seeds)))
        return CellRuns({}, "failed" if failures else "not run", tuple(failures))

    def _flags(self, seeds: Mapping[int, tuple[ScoreRun, ...]]) -> tuple[Flag, ...]:
        """What the packages of the attacks reported about the attacked models."""
        texts: dict[str, None] = {}
        for run in (run for runs in seeds.values() for run in runs):
            spec = run.record.spec
            if not isinstance(spec, ScoreSpec) or spec.attack is None:
                continue
            record, _ = self.origin(run)
            for text in record.summary.get("flags", ()) if record else ():
                texts[f"{run.attack}{REPORTS}{text}"] = None
        return tuple(Flag("run", text) for text in texts)

    def _reported_elsewhere(self, seeds: Mapping[int, tuple[ScoreRun, ...]]) -> tuple[Flag, ...]:
        """What RobustBench reports of the scored classifier, if it is from its zoo."""
        spec = next(iter(seeds.values()))[0].record.spec
        if not isinstance(spec, ScoreSpec):
            return ()
        if spec.classifier not in self._reported:
            folder = RunFolder(self.root, "classifier", spec.classifier)
            summary = folder.record(verify=False).summary if folder.complete() else {}
            self._reported[spec.classifier] = summary.get("reported_elsewhere")
        line = self._reported[spec.classifier]
        return () if line is None else (Flag("run", line["sentence"]),)


@dataclass(frozen=True)
class Predicted(ScoreRun):
    """A run of the stage ``smooth``, with images as correct if PREDICT returns their label.

    Attributes:
        run: the run, judged by CERTIFY.
    """

    run: ScoreRun

    @cached_property
    def scores(self) -> pd.DataFrame:
        frame = self.run.scores
        if "predict_correct" not in frame:
            raise UserError(
                f"{self.folder}: has no predictions of PREDICT, an older version made it; delete "
                "the folder and start the command again"
            )
        return frame.assign(correct=frame["predict_correct"])


def _judged_by(run: ScoreRun, cell: Cell) -> ScoreRun:
    if cell.metric == "smoothed_prediction":
        return Predicted(run.id, run.folder, run.record, run)
    return run


@dataclass(frozen=True)
class WorstPerImage(ScoreRun):
    """The first of several runs, with images as correct only if all runs have them correct.

    Attributes:
        runs: runs of the same images.
    """

    runs: tuple[ScoreRun, ...]

    @cached_property
    def scores(self) -> pd.DataFrame:
        first, *others = (run.scores for run in self.runs)
        correct = first["correct"]
        for other in others:
            correct = correct & other["correct"]
        return first.assign(correct=correct)


def worst_per_image(runs: tuple[ScoreRun, ...]) -> ScoreRun:
    """Combine the runs of one seed to the worst case of each image."""
    first = runs[0]
    return WorstPerImage(first.id, first.folder, first.record, runs)


def worst(cell: Cell, runs: tuple[ScoreRun, ...]) -> ScoreRun:
    """Select the run with the lowest accuracy under one seed; of equal runs the first.

    Raises:
        UserError: a worst-of cell of a metric other than accuracy.
    """
    if len(runs) == 1:
        return runs[0]
    if cell.metric != "accuracy":
        raise UserError(
            f"{cell.document} of {cell.paper}, row {cell.row!r}, column {cell.column!r}: "
            f"worst_of needs the metric accuracy, not {cell.metric!r}"
        )
    return min(runs, key=lambda run: float(run.correct.mean()))
