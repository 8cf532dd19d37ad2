"""A paper's index says what its own tables are made of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import load_scale
from purifiers.report.reports import write_reports

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("paper", "told"), [("aid", True), ("advae", False)])
def test_stand_ins_are_named_where_there_are_some(paper, told, tmp_path):
    """At desk, MNIST stands in for SVHN, which AdvAE does not use."""
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    declared = tmp_path / "benchmarks" / paper
    declared.mkdir(parents=True)
    scale = load_scale(ROOT, "desk")
    for name in ("paper", "table_1", *scale.declared["papers"][paper]["documents"]):
        file = f"{name}.yaml"
        (declared / file).symlink_to(ROOT / "benchmarks" / paper / file)
    write_reports(tmp_path, "desk", [paper])
    index = (tmp_path / "results/tables/desk" / paper / "README.md").read_text()
    note = scale.info().stand_in_note
    assert note
    assert (note in index) == told


def test_what_has_not_been_run_is_only_listed(tmp_path):
    """Unless it is asked for by its name."""
    for folder in ("benchmarks", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    out = tmp_path / "results/tables/desk/advae"
    write_reports(tmp_path, "desk", ["advae"])
    index = (out / "README.md").read_text()
    assert "| table 1 | MNIST accuracy under three threat models | 28 | 28 | 0 |" in index
    assert (
        "| [table 2](table_2.csv) | Architectures of the MNIST classifiers | 30 | 0 | 0 |" in index
    )
    assert {path.name for path in out.glob("*.csv")} == {"table_2.csv", "claims.csv"}
    write_reports(tmp_path, "desk", ["advae/table_1"])
    assert (out / "table_1.csv").exists()


def test_an_index_is_not_replaced_by_one_of_nothing(tmp_path):
    """As in a fresh clone, whose tables are there and whose runs are not."""
    for folder in ("benchmarks", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    out = tmp_path / "results/tables/desk/advae"
    out.mkdir(parents=True)
    for name in ("README.md", "claims.csv"):
        (out / name).write_text("earned")
    write_reports(tmp_path, "desk", ["advae"])
    assert all((out / name).read_text() == "earned" for name in ("README.md", "claims.csv"))


def test_a_collapsed_training_is_named_under_its_cells(tmp_path):
    """Cells that use the classifier are flagged, others are not."""
    for folder in ("benchmarks", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    plan = make_plan(tmp_path, "smoke", ["aid/table_3"])
    run = next(
        run
        for run in plan.runs.values()
        if run.stage == "classifier" and run.spec.training.component == "madry"
    )
    folder = RunFolder(plan.runs_root, run.stage, run.id)
    folder.path.mkdir(parents=True)
    with folder.lock():
        folder.finish(run.spec, [], {"note": "catastrophic overfitting: 90 %"}, 0.0, {})
    write_reports(tmp_path, "smoke", ["aid/table_3"])
    table = pd.read_csv(tmp_path / "results/tables/smoke/aid/table_3.csv")
    flagged = table["flags"].str.contains("catastrophic overfitting: 90 %", na=False)
    assert set(table["training"][flagged]) == {"madry"}
    assert flagged.sum() == (table["training"] == "madry").sum()
