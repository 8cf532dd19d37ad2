"""Cells of randomised smoothing: CERTIFY and PREDICT judge the same votes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import ImagesSpec, Smoothing, SmoothSpec, Subset
from purifiers.plan.cells import ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.results import Results

SPEC = SmoothSpec(
    images=ImagesSpec(data="mnist-1", subset=Subset(split="test", n=3, seed=0), run=None),
    classifier="cnn",
    methods=(),
    smoothing=Smoothing(sigma=0.25, selection=20, estimation=20, alpha=0.01),
    seed=0,
)


@pytest.fixture
def smoothed(runs_root: Path) -> Callable[..., None]:
    """Write the run ``votes``: CERTIFY returns the label of one image."""

    def write(**more: list[bool]) -> None:
        folder = RunFolder(runs_root, "smooth", "votes")
        folder.path.mkdir(parents=True)
        right = [True, False, False]
        columns = {"index": [0, 1, 2], "label": [1, 1, 1], "correct": right, **more}
        pd.DataFrame(columns).to_parquet(folder.path / "scores.parquet")
        folder.finish(SPEC, ["scores.parquet"], {"n_correct": 1, "n": 3}, 1.0, {})

    return write


@pytest.mark.parametrize(
    ("metric", "expected"), [("smoothed_accuracy", 1), ("smoothed_prediction", 2)]
)
def test_each_rule_counts_its_own_images(
    metric: str,
    expected: int,
    smoothed: Callable[..., None],
    a_cell: Any,
    a_document: Any,
    paper_scale: ScaleInfo,
    runs_root: Path,
) -> None:
    smoothed(predict_correct=[True, True, False])
    cell = a_cell(metric=metric, attack="none", scores=(("votes",),), seeds=(0,))
    frame = aggregate(a_document(cell), paper_scale, Results(runs_root, {}.get))
    (row,) = frame.to_dict("records")
    assert (row["n_correct"], row["n"]) == (expected, 3)


def test_a_run_without_predictions_is_refused(
    smoothed: Callable[..., None], a_cell: Any, runs_root: Path
) -> None:
    smoothed()
    cell = a_cell(metric="smoothed_prediction", scores=(("votes",),), seeds=(0,))
    ((run,),) = Results(runs_root, {}.get).find(cell).seeds.values()
    with pytest.raises(UserError, match=r"smooth/votes: has no predictions of PREDICT"):
        _ = run.correct
