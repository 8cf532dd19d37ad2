"""Aggregate a document's cells to tidy rows with published and reproduced values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from purifiers.plan.cells import Cell, Document, Flag, ScaleInfo
from purifiers.report.attacked import weak_attacks
from purifiers.report.compare import ELSEWHERE, verdict
from purifiers.report.intervals import wilson
from purifiers.report.results import (
    COUNTED,
    FLAGS,
    CellRuns,
    Results,
    ScoreRun,
    worst,
    worst_per_image,
)

COLUMNS = (
    *("paper", "document", "table", "block", "row", "column", "dataset", "classifier"),
    *("training", "method", "attack", "threat_model", "gradient", "metric", "unit", "published"),
    *("reproduced", "n_correct", "n", "images", "ci_low", "ci_high", "seeds", "seed_low"),
    *("seed_high", "deviation", "verdict", "worst_attack", "scale", "stand_in", "flags"),
    *("warnings", "identity"),
)
INTERNAL = (FLAGS, "suspicious")
"""Columns that are not written to files: the flags of a cell as objects, and whether its attack
shows signs of weakness."""
COUNTS = ("n_correct", "n", "images", "seeds")
UNMEASURED = {"train_minutes": "fitted before training times were recorded"}
"""Metric to the reason why a finished run may lack it, where the reason is known."""
NUMBERS = ("published", "reproduced", "ci_low", "ci_high", "seed_low", "seed_high", "deviation")


def aggregate(
    document: Document,
    scale: ScaleInfo,
    results: Results,
    published_n: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Aggregate the finished runs of each cell to one row, in the document's order.

    - ``reproduced`` is the mean over the seeds (accuracy in percent); ``seed_low`` and
      ``seed_high`` are the lowest and highest value.
    - ``n_correct`` and ``n`` are pooled over the seeds; ``images`` counts the distinct images.
    - ``ci_low`` and ``ci_high`` are Wilson's 95 % interval at the pooled proportion with
      ``n = images``. Seeds classify the same images and are not independent, so more seeds do not
      narrow the interval.
    - In a worst-of cell each seed takes the lowest accuracy over its runs. ``worst_attack`` is the
      column of that run, or its attack where it has no column; several are joined by ``/``.
    - A mean over cells pools the images of all its cells; its interval uses the distinct images.
    - ``warnings`` lists the signs of a weak attack, see :mod:`purifiers.report.signs`.

    Args:
        document: the document.
        scale: the scale of its runs.
        results: the runs.
        published_n: number of images of the published values, by data set. Without an entry the
            number of reproduced images is used, which is the same at the papers' own scale.

    Returns:
        One row per cell with the columns ``COLUMNS`` and ``INTERNAL``.

    Raises:
        UserError: a worst-of cell of a metric other than accuracy.
    """
    cell_runs = [results.find(cell) for cell in document.cells]
    columns = {
        (cell.block, cell.row, ids[0]): cell.column
        for cell in document.cells
        for ids in cell.scores
        if len(ids) == 1
    }
    rows = []
    weaknesses = weak_attacks(document, cell_runs, results)
    for cell, runs, weakness in zip(document.cells, cell_runs, weaknesses, strict=True):
        row = _row(cell, runs, scale, published_n or {}, columns)
        row |= {"warnings": weakness.text, "suspicious": weakness.suspicious}
        rows.append({**row, "flags": "; ".join(map(str, row[FLAGS]))})
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *INTERNAL])
    types: dict[str, Any] = dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, "Int64")
    return frame.astype(types)


def stand_in(cell: Cell) -> str:
    """Name of the data set that replaces the paper's in this cell, or ``""``."""
    used = cell.used_dataset
    return used if used is not None and used != cell.dataset else ""


def _row(
    cell: Cell,
    cell_runs: CellRuns,
    scale: ScaleInfo,
    published_n: Mapping[str, int],
    columns: Mapping[tuple[str, str, str], str],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "paper": cell.paper,
        "document": cell.document,
        "table": cell.table,
        "block": cell.block,
        "row": cell.row,
        "column": cell.column,
        "dataset": cell.dataset,
        "classifier": cell.classifier,
        "training": cell.training,
        "method": "+".join(cell.methods) or "none",
        "attack": cell.attack_label,
        "threat_model": cell.threat_model,
        "gradient": cell.gradient,
        "metric": cell.metric,
        "unit": cell.unit,
        "published": cell.published,
        "seeds": len(cell_runs.seeds),
        "verdict": cell_runs.missing,
        "worst_attack": "",
        "scale": scale.name,
        "stand_in": stand_in(cell),
        "identity": cell.identity,
        FLAGS: (*cell.flags, *cell_runs.flags),
    }
    if cell_runs.seeds:
        row |= _measured(cell, cell_runs, scale, published_n, columns)
    return row


def _measured(
    cell: Cell,
    cell_runs: CellRuns,
    scale: ScaleInfo,
    published_n: Mapping[str, int],
    columns: Mapping[tuple[str, str, str], str],
) -> dict[str, Any]:
    parts = [_counted(cell, runs) for runs in cell_runs.seeds.values()]
    counted = [run for runs in parts for run in runs]
    values = [[run.value(cell.metric) for run in runs] for runs in parts]
    by_seed = [float(np.mean([v for v in of if v is not None])) for of in values if None not in of]
    if len(by_seed) < len(values):
        reason = UNMEASURED.get(cell.metric, f"the run did not measure {cell.metric}")
        flags = (*cell.flags, *cell_runs.flags, Flag("run", reason))
        return {"seeds": 0, "verdict": "not run", FLAGS: flags}
    result: dict[str, Any] = {
        "reproduced": float(np.mean(by_seed)),
        "seed_low": min(by_seed),
        "seed_high": max(by_seed),
    }
    if cell.metric in COUNTED:
        images = len(set().union(*(run.scores.index for run in counted)))
        n_correct = sum(int(run.correct.sum()) for run in counted)
        n = sum(len(run.scores) for run in counted)
        low, high = wilson(n_correct / n * images, images)
        result |= {"n_correct": n_correct, "n": n, "images": images}
        result |= {"ci_low": 100 * low, "ci_high": 100 * high}
    several = any(len(runs) > 1 for runs in cell_runs.seeds.values())
    if several and not (cell.mean or cell.per_image):
        worst_names = (columns.get((cell.block, cell.row, run.id), run.attack) for run in counted)
        result["worst_attack"] = "/".join(dict.fromkeys(worst_names))
    if cell.stage == "time":
        devices = dict.fromkeys(_timed_on(run, cell.metric) for run in counted)
        timed = (Flag("run", device) for device in devices if device)
        result[FLAGS] = (*cell.flags, *cell_runs.flags, *timed)
    return result | judged(cell, result, scale, published_n)


def judged(
    cell: Cell, measured: Mapping[str, Any], scale: ScaleInfo, published_n: Mapping[str, int]
) -> dict[str, Any]:
    """Compare a measured value with the published one: ``verdict``, and ``deviation`` if there is
    one.

    Args:
        measured: columns of the cell's row, with those of the interval for an accuracy.
        published_n: see :func:`aggregate`.
    """
    images, interval = 0, None
    if cell.metric in COUNTED:
        images, interval = measured["images"], (measured["ci_low"], measured["ci_high"])
    result: dict[str, Any] = {
        "verdict": verdict(
            cell.published,
            measured["reproduced"],
            scale,
            bool(stand_in(cell)),
            interval,
            published_n.get(cell.dataset, images),
            measured["seed_high"] - measured["seed_low"],
        )
    }
    if cell.published is not None:
        result["deviation"] = measured["reproduced"] - cell.published
        if cell.stage == "time":
            result["verdict"] = ELSEWHERE
    return result


def _counted(cell: Cell, runs: tuple[ScoreRun, ...]) -> tuple[ScoreRun, ...]:
    """The runs of a seed whose values a cell averages."""
    if cell.mean:
        return runs
    return (worst_per_image(runs) if cell.per_image else worst(cell, runs),)


def _timed_on(run: ScoreRun, metric: str) -> str:
    """Device on which a time was measured; ``""`` where nothing was trained."""
    if metric == "train_minutes":
        devices = dict.fromkeys(summary["device_name"] for summary in run.fits)
        return f"trained on {', '.join(devices)}" if devices else ""
    batch = run.record.summary["best_batch"] if metric == "seconds_per_image_batched" else 1
    return f"timed on {run.device}, batch {batch}"
