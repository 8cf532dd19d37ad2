from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import binomtest

from purifiers.classifiers._leaderboard import reported
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec, ComponentSpec
from purifiers.plan.cells import Cell, Combine, Flag, ScaleInfo
from purifiers.report.aggregate import COLUMNS, INTERNAL, aggregate
from purifiers.report.results import FLAGS, Results

Make = Callable[..., Any]
Row = Callable[..., pd.Series]


@pytest.fixture
def row_of(a_document: Make, paper_scale: ScaleInfo, runs_root: Path) -> Row:
    def aggregated(cell: Cell, failures: dict[str, str] | None = None) -> pd.Series:
        runs = Results(runs_root, (failures or {}).get)
        frame = aggregate(a_document(cell), paper_scale, runs)
        assert tuple(frame.columns) == (*COLUMNS, *INTERNAL)
        return frame.iloc[0]

    return aggregated


def test_two_seeds_by_hand(a_cell: Make, score: Make, row_of: Row) -> None:
    score("a", [1, 1, 1, 0])
    score("b", [1, 0, 0, 0])
    cell = a_cell(scores=(("a",), ("b",)), seeds=(0, 1), methods=("jpeg", "aid"))
    row = row_of(cell)
    assert row["reproduced"] == pytest.approx(50.0)
    assert (row["n_correct"], row["n"], row["images"], row["seeds"]) == (4, 8, 4, 2)
    assert (row["seed_low"], row["seed_high"]) == (25.0, 75.0)
    assert row["deviation"] == pytest.approx(-10.0)
    expected = binomtest(2, 4).proportion_ci(method="wilson")
    assert row["ci_low"] == pytest.approx(100 * expected.low)
    assert row["ci_high"] == pytest.approx(100 * expected.high)
    assert row["verdict"] == "match"
    assert row["method"] == "jpeg+aid"
    assert row["worst_attack"] == ""


def test_worst_of_is_taken_within_each_seed(a_cell: Make, score: Make, row_of: Row) -> None:
    score("clean0", [1, 1, 1, 1], attack=None)
    score("pgd0", [1, 1, 0, 0], attack="pgd")
    score("cw0", [1, 1, 1, 0], attack="cw")
    score("clean1", [0, 0, 0, 1], attack=None)
    score("pgd1", [1, 1, 1, 0], attack="pgd")
    score("cw1", [1, 1, 0, 0], attack="cw")
    scores = (("clean0", "pgd0", "cw0"), ("clean1", "pgd1", "cw1"))
    combine = Combine("worst", ("clean", "pgd", "cw"))
    row = row_of(a_cell(scores=scores, seeds=(0, 1), combine=combine))
    assert row["attack"] == "worst of clean, pgd, cw"
    assert row["reproduced"] == pytest.approx((50.0 + 25.0) / 2)
    assert row["n_correct"] == 2 + 1
    assert row["worst_attack"] == "pgd/clean"


def test_the_worst_attack_is_named_by_its_column(
    a_cell: Make, a_document: Make, score: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    """Two columns may have the same attack, once on the classifier and once on the defence."""
    score("bare", [1, 1, 1, 0])
    score("whole", [1, 0, 0, 0])
    cells = [
        a_cell(column=name, scores=scores, seeds=(0,))
        for name, scores in (
            ("on_classifier", (("bare",),)),
            ("on_defence", (("whole",),)),
            ("worst", (("bare", "whole"),)),
        )
    ]
    frame = aggregate(a_document(*cells), paper_scale, Results(runs_root, {}.get))
    assert frame["worst_attack"].tolist() == ["", "", "on_defence"]


def test_half_a_worst_of_is_not_run(a_cell: Make, score: Make, row_of: Row) -> None:
    score("clean0", [1, 1], attack=None)
    row = row_of(a_cell(scores=(("clean0", "pgd0"),), seeds=(0,)))
    assert row["verdict"] == "not run"
    assert pd.isna(row["reproduced"])
    assert row["seeds"] == 0


def test_a_failed_run_tells_why(a_cell: Make, row_of: Row) -> None:
    cell = a_cell(scores=(("a",), ("b",)), seeds=(0, 1), flags=(Flag("note", "unreliable"),))
    row = row_of(cell, failures={"a": "loss is not finite"})
    assert row["verdict"] == "failed"
    assert row["flags"] == "unreliable; seed 0 failed: loss is not finite"
    assert row[FLAGS] == (
        Flag("note", "unreliable"),
        Flag("run", "seed 0 failed: loss is not finite"),
    )


def test_complete_seeds_count_and_the_others_are_flagged(
    a_cell: Make, score: Make, row_of: Row
) -> None:
    score("a", [1, 0])
    row = row_of(a_cell(scores=(("a",), ("b",)), seeds=(0, 7)))
    assert (row["reproduced"], row["seeds"], row["flags"]) == (50.0, 1, "seed 7 not run")


@pytest.mark.parametrize(
    ("state", "reason", "verdict", "flags"),
    [
        ("not implemented", "method pixel_defend is not implemented", None, None),
        ("not run", "cifar100 is not part of scale desk", None, None),
        ("quoted", "", "quoted", ""),
        ("configuration", "", "not run", "nothing to run"),
    ],
)
def test_states_that_never_run(
    a_cell: Make,
    row_of: Row,
    state: str,
    reason: str,
    verdict: str | None,
    flags: str | None,
) -> None:
    row = row_of(a_cell(state=state, reason=reason))
    assert row["verdict"] == (verdict or state)
    assert row["flags"] == (reason if flags is None else flags)


def test_stand_in_is_named_and_not_compared(a_cell: Make, score: Make, row_of: Row) -> None:
    score("a", [1, 0])
    cell = a_cell(scores=(("a",),), seeds=(0,), dataset="svhn", used_dataset="digits")
    row = row_of(cell)
    assert (row["dataset"], row["stand_in"]) == ("svhn", "digits")
    assert row["verdict"] == "not comparable at this scale"


def test_published_n_narrows_the_verdict(
    a_cell: Make, a_document: Make, score: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    score("a", [1] * 670 + [0] * 330)
    document = a_document(a_cell(scores=(("a",),), seeds=(0,), published=63.3))
    runs = Results(runs_root, {}.get)
    assert aggregate(document, paper_scale, runs)["verdict"][0] == "match"
    frame = aggregate(document, paper_scale, runs, published_n={"mnist": 10**6})
    assert frame["verdict"][0] == "differs"


def test_other_metrics(a_cell: Make, score: Make, row_of: Row) -> None:
    score("a", [1, 1, 1], summary={"queries": 0.5})
    given = {"scores": (("a",),), "seeds": (0,), "published": 0.52}
    cell = a_cell(metric="queries", unit="queries", **given)
    row = row_of(cell)
    assert (row["reproduced"], row["verdict"]) == (0.5, "match")
    assert pd.isna(row["n"]) and pd.isna(row["ci_low"])
    assert row_of(a_cell(metric="mean_l2", **given))["reproduced"] == 1.0
    row = row_of(a_cell(metric="forgotten", **given))
    assert (row["verdict"], row["seeds"]) == ("not run", 0)
    assert row["flags"] == "the run did not measure forgotten"


def test_worst_of_needs_accuracy(a_cell: Make, score: Make, row_of: Row) -> None:
    score("a", [1])
    score("b", [1])
    cell = a_cell(metric="mean_l2", scores=(("a", "b"),), seeds=(0,))
    with pytest.raises(UserError, match="worst_of needs the metric accuracy"):
        row_of(cell)


def test_a_summary_that_disagrees_is_refused(a_cell: Make, score: Make, row_of: Row) -> None:
    score("a", [1, 0], summary={"n_correct": 2})
    with pytest.raises(UserError, match="1 of 2 correct"):
        row_of(a_cell(scores=(("a",),), seeds=(0,)))


def test_a_damaged_file_is_refused(a_cell: Make, score: Make, row_of: Row, runs_root: Path) -> None:
    score("a", [1, 0])
    (runs_root / "score" / "a" / "scores.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"scores\.parquet"):
        row_of(a_cell(scores=(("a",),), seeds=(0,)))


def test_a_schematic_has_no_rows(a_document: Make, runs_root: Path, paper_scale: ScaleInfo) -> None:
    empty = a_document(paper="idfr", document="figure_2", status="qualitative")
    frame = aggregate(empty, paper_scale, Results(runs_root, {}.get))
    assert frame.empty and tuple(frame.columns) == (*COLUMNS, *INTERNAL)


def test_reported_elsewhere_is_a_flag(
    score: Make, runs_root: Path, a_cell: Make, a_document: Make, paper_scale: ScaleInfo
) -> None:
    """RobustBench's number stands beside ours for networks of its zoo."""
    score("s", [1, 0], classifier="zoo-1")
    folder = RunFolder(runs_root, "classifier", "zoo-1")
    folder.path.mkdir(parents=True)
    spec = ClassifierSpec(
        data="d",
        train=0,
        classifier=ComponentSpec(component="robustbench", version=1, parameters={}),
        training=ComponentSpec(component="pretrained", version=1, parameters={}),
        seed=0,
    )
    line = reported("Wong2020Fast").to_json()
    folder.finish(spec, [], {"reported_elsewhere": line}, 0.0, {})
    document = a_document(
        a_cell(seeds=(0,), scores=(("s",),)),
        a_cell(seeds=(0,), scores=(("s",),), metric="mean_l2"),
    )
    frame = aggregate(document, paper_scale, Results(runs_root, lambda run: None))
    text = "RobustBench reports 83.34 % clean, 43.21 % under AutoAttack, eps 8/255"
    assert frame["flags"].tolist() == [text, ""]
