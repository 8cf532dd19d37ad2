"""One small table from declaration to scores, by the jobs that Snakemake would start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.artifacts import read_json
from purifiers.plan.batches import Batch, gather, write_specs
from purifiers.plan.declarations import Paper
from purifiers.plan.expand import Expander
from purifiers.plan.graph import with_ancestors
from purifiers.plan.scale import Scale
from purifiers.selfcheck.checks import Check, Outcome, passed_if
from purifiers.selfcheck.context import Context
from purifiers.stages.job import run_batch

TRAINED = {"epochs": 8, "batch_size": 50, "learning_rate": 0.05}
PAPER: dict[str, Any] = {
    "id": "selfcheck",
    "title": "A table of the self-check",
    "classifiers": {
        "small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1, "first_stride": 2}
    },
    "trainings": {"natural": {"component": "natural", **TRAINED}},
    "methods": {"sign": {"component": "random_sign", "eps": 0.05}},
    "attacks": {"pgd": {"component": "pgd", "eps": 0.15, "steps": 10, "step_size": 0.05}},
}
TABLE: dict[str, Any] = {
    "table": "1",
    "title": "Clean and under PGD",
    "where": "nowhere",
    "defaults": {"classifier": "small", "training": "natural", "threat_model": "oblivious"},
    "rows": [
        {"id": "none", "label": "None", "cell": {"methods": []}},
        {"id": "sign", "label": "Random signs", "cell": {"methods": ["sign"]}},
    ],
    "columns": [
        {"id": "clean", "label": "Clean", "cell": {"attack": "none"}},
        {"id": "pgd", "label": "PGD", "cell": {"attack": "pgd"}},
    ],
    "blocks": [{"id": "digits", "label": "Digits", "cell": {"dataset": "digits"}}],
}
LEAST_CLEAN = 50.0
"""Lowest clean accuracy after this training, in percent; chance is 10."""


def checks(context: Context) -> Iterator[Check]:
    """One check: the whole table."""
    yield Check("training, attack, purification, score", partial(_table, context))


def _table(context: Context) -> Outcome:
    scale = Scale("selfcheck", _scale(context.device))
    expander = Expander(scale)
    document = expander.document(
        Paper("selfcheck", Path("selfcheck"), PAPER, {"table_1": TABLE}, ()), "table_1"
    )
    ids = {run for cell in document.cells for group in cell.scores for run in group}
    runs = with_ancestors(expander.graph.runs[run] for run in sorted(ids))
    with tempfile.TemporaryDirectory(prefix="purifybench-") as folder:
        root = Path(folder)
        batches = {batch.id: batch for batch in gather(runs, scale).values()}
        write_specs(batches.values(), root, scale)
        failed = sum(_run(batch, root) for batch in _in_order(batches.values()))
        values = {
            (cell.row, cell.column): _accuracy(root, cell.scores[0][0])
            for cell in document.cells
            if not failed
        }
    if failed:
        return passed_if(False, f"{failed} runs failed; their errors are above")
    clean, attacked = values["none", "clean"], values["none", "pgd"]
    shown = ", ".join(f"{row} {column} {value:.1f} %" for (row, column), value in values.items())
    return passed_if(clean >= LEAST_CLEAN and attacked < clean, shown, clean=clean, pgd=attacked)


def _scale(device: str) -> dict[str, Any]:
    return {
        "label": "selfcheck",
        "reduced": True,
        "seeds": [0],
        "device": device,
        "threads": 1,
        "batch_size": 128,
        "datasets": {"digits": {"use": "digits", "train": 400, "test": 64}},
    }


def _in_order(batches: Any) -> Iterator[Batch]:
    """Batches, each after those that it reads."""
    left = list(batches)
    done: set[str] = set()
    while left:
        ready = [batch for batch in left if {b.id for b in batch.upstream} <= done]
        yield from ready
        done |= {batch.id for batch in ready}
        left = [batch for batch in left if batch.id not in done]


def _run(batch: Batch, root: Path) -> int:
    folder = root / "batches"
    spec = read_json(folder / batch.spec_name)
    return run_batch(spec, folder / batch.manifest_name, root, threads=1)


def _accuracy(root: Path, run: str) -> float:
    scores = pd.read_parquet(root / "score" / run / "scores.parquet")
    return 100.0 * float((scores["prediction"] == scores["label"]).mean())
