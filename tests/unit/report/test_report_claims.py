from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    ImagesSpec,
    MethodSpec,
    NormSpec,
    Spec,
    Subset,
    TimeSpec,
    Timing,
    TraceSpec,
)
from purifiers.plan.cells import Combine, Document, ScaleInfo
from purifiers.report.claims import COLUMNS, write_claims

Make = Callable[..., Any]
Judge = Callable[..., dict[str, str]]
HIGH, LOW = [1] * 90 + [0] * 10, [1] * 50 + [0] * 50
PLACES = {"madry": "Madry", "aid": "Madry + AID", "noise": "Noise"}
PLACES_IN_ORDER = ("aid", "madry", "noise")


def part(better: str, than: str | list[str], column: str = "pgd") -> dict[str, Any]:
    def place(row: str) -> dict[str, str]:
        return {"table": "3", "block": "mnist", "row": row, "column": column}

    if isinstance(than, str):
        return {"better": place(better), "than": place(than)}
    return {"better": place(better), "better_than_all": [place(row) for row in than]}


def finish(folder: RunFolder, spec: Spec, **columns: np.ndarray) -> None:
    """Write a finished run with these columns of one row per image."""
    n = len(next(iter(columns.values())))
    folder.path.mkdir(parents=True)
    table = pd.DataFrame({"index": range(n), **columns})
    table.to_parquet(folder.path / "scores.parquet")
    folder.finish(spec, ["scores.parquet"], {"n": n}, 1.5, {})


@pytest.fixture
def document(a_cell: Make, a_document: Make) -> Document:
    rows = [
        a_cell(row=row, row_label=label, scores=((f"{row}0",), (f"{row}1",)), seeds=(0, 1))
        for row, label in PLACES.items()
    ]
    absent = a_cell(
        row="pd",
        row_label="PD",
        state="not implemented",
        reason="method pixel_defend is not implemented",
    )
    return a_document(*rows, absent)


@pytest.fixture
def judge(tmp_path: Path, runs_root: Path, smoke_scale: ScaleInfo, document: Document) -> Judge:
    def run(*parts: dict[str, Any], other: Document | None = None) -> dict[str, str]:
        claim = {"id": "c", "text": "AID\n raises accuracy", "where": "section 4", "decide": parts}
        path = tmp_path / "claims.csv"
        given = {"table_3": other or document}
        write_claims([claim], given, smoke_scale, runs_root, path, {}.get)
        with path.open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert tuple(row) == COLUMNS
        return row

    return run


@pytest.fixture
def scored(score: Make) -> None:
    for seed in (0, 1):
        score(f"aid{seed}", HIGH)
        score(f"madry{seed}", LOW)
        score(f"noise{seed}", LOW)


@pytest.mark.usefixtures("scored")
class TestScored:
    def test_supported(self, judge: Judge) -> None:
        row = judge(part("aid", "madry"))
        assert row["verdict"] == "supported"
        assert row["text"] == "AID raises accuracy"
        assert (row["where"], row["scale"], row["stand_in"]) == ("section 4", "smoke", "")
        assert row["evidence"].startswith("Madry + AID over Madry (MNIST, PGD): +40.0 [+3")
        assert row["evidence"].endswith(" pp (100 images x 2 seeds)")

    @pytest.mark.parametrize(
        ("by", "verdict"), [(20, "supported"), (40, "undecided"), (60, "contradicted")]
    )
    def test_a_margin(self, judge: Judge, by: float, verdict: str) -> None:
        row = judge({**part("aid", "madry"), "by": by})
        assert row["verdict"] == verdict
        assert row["evidence"].endswith(f" pp (100 images x 2 seeds), more than {by:+} required")

    def test_a_loss_within_a_margin(self, judge: Judge) -> None:
        assert judge({**part("madry", "aid"), "by": -60})["verdict"] == "supported"
        assert judge({**part("madry", "aid"), "by": -20})["verdict"] == "contradicted"

    @pytest.mark.parametrize(
        ("most", "verdict"), [(70, "supported"), (50, "undecided"), (30, "contradicted")]
    )
    def test_at_most(self, judge: Judge, most: float, verdict: str) -> None:
        row = judge({"at_most": most, "of": part("madry", "aid")["better"]})
        assert row["verdict"] == verdict
        assert row["evidence"].startswith("table 3 (MNIST, Madry, PGD): 50.0 [4")
        assert row["evidence"].endswith(f" %, at most {most} required (100 images x 2 seeds)")

    @pytest.mark.parametrize(
        ("least", "verdict"), [(30, "supported"), (50, "undecided"), (70, "contradicted")]
    )
    def test_at_least(self, judge: Judge, least: float, verdict: str) -> None:
        row = judge({"at_least": least, "of": part("madry", "aid")["better"]})
        assert row["verdict"] == verdict
        assert row["evidence"].startswith("table 3 (MNIST, Madry, PGD): 50.0 [4")
        assert row["evidence"].endswith(f" %, at least {least} required (100 images x 2 seeds)")

    @pytest.mark.parametrize(
        ("times", "verdict"), [(1.5, "supported"), (1.8, "undecided"), (2.2, "contradicted")]
    )
    def test_a_factor(self, judge: Judge, times: float, verdict: str) -> None:
        """90 % is 1.8 times 50 %."""
        row = judge({**part("aid", "madry"), "times": times})
        assert row["verdict"] == verdict
        assert row["evidence"].startswith(f"Madry + AID over {times:g} x Madry (MNIST, PGD): ")

    def test_a_mean_of_cells(self, judge: Judge) -> None:
        """The mean of 90 and 50 % is 20 points above 50 %."""
        aid, madry, noise = (part(row, "noise")["better"] for row in PLACES_IN_ORDER)
        row = judge({"better": [aid, madry], "than": noise, "by": 10})
        assert row["verdict"] == "supported"
        assert row["evidence"].startswith("mean of 2 cells from table 3 (MNIST, Madry + AID, PGD) ")
        assert ": +20.0 [" in row["evidence"]
        assert judge({"better": [aid, madry], "than": noise, "by": 30})["verdict"] == "contradicted"
        assert judge({"better": [aid, madry], "than": [aid, noise]})["verdict"] == "undecided"

    def test_each_repeats_a_part_and_leaves_named_keys_alone(self, judge: Judge) -> None:
        base = {"table": "3", "block": "mnist", "column": "pgd"}
        repeated = {"each": {"row": ["madry", "noise"]}, "better": {**base, "row": "aid"}}
        row = judge({**repeated, "than": base})
        assert row["verdict"] == "supported"
        assert "Madry + AID over Madry (MNIST" in row["evidence"]
        assert "Madry + AID over Noise (MNIST" in row["evidence"]

    def test_contradicted_by_one_part(self, judge: Judge) -> None:
        row = judge(part("aid", "madry"), part("madry", "aid"))
        assert row["verdict"] == "contradicted"
        assert "Madry over Madry + AID (MNIST, PGD): -40.0" in row["evidence"]

    def test_undecided(self, judge: Judge) -> None:
        assert judge(part("aid", "madry"), part("madry", "noise"))["verdict"] == "undecided"

    def test_better_than_all(self, judge: Judge) -> None:
        assert judge(part("aid", ["madry", "noise"]))["verdict"] == "supported"
        assert judge(part("madry", ["noise", "aid"]))["verdict"] == "contradicted"

    def test_a_missing_cell_is_named_beside_the_rest(self, judge: Judge) -> None:
        row = judge(part("aid", "madry"), part("pd", "madry"))
        assert row["verdict"] == "not implemented"
        told = "method pixel_defend is not implemented: table 3 (MNIST, PD, PGD)"
        assert row["evidence"].endswith(f"; {told}")
        assert "Madry + AID over Madry" in row["evidence"]

    def test_contradicted_outweighs_a_missing_cell(self, judge: Judge) -> None:
        assert judge(part("madry", "aid"), part("pd", "madry"))["verdict"] == "contradicted"

    def test_unknown_cell_is_refused(self, judge: Judge) -> None:
        with pytest.raises(UserError, match=r"no row 'madri'.*did you mean 'madry'"):
            judge(part("aid", "madri"))

    def test_ambiguous_cell_is_refused(self, judge: Judge) -> None:
        with pytest.raises(UserError, match="matches 4 cells"):
            judge({"better": {"table": "3"}, "than": {"table": "3"}})


def test_a_claim_without_parts_is_undecided(judge: Judge) -> None:
    row = judge()
    assert (row["verdict"], row["evidence"]) == ("undecided", "no cell tests this claim")


def test_not_run(judge: Judge, score: Make) -> None:
    score("aid0", HIGH)
    score("aid1", HIGH)
    row = judge(part("aid", "madry"))
    assert row["verdict"] == "not run"
    assert row["evidence"] == "not run: table 3 (MNIST, Madry, PGD)"


def test_missing_cells_are_gathered_by_reason(judge: Judge) -> None:
    row = judge(part("aid", ["madry", "noise"]))
    cells = (f"table 3 (MNIST, {name}, PGD)" for name in ("Madry + AID", "Madry", "Noise"))
    assert row["evidence"] == "not run: " + ", ".join(cells)


def test_only_seeds_and_images_of_both_sides_count(judge: Judge, score: Make) -> None:
    score("aid0", [1, 1, 1, 1], indices=[5, 6, 7, 8])
    score("madry0", [0, 0, 0, 1], indices=[7, 8, 9, 6])
    score("madry1", [1, 1, 1, 1])
    row = judge(part("aid", "madry"))
    # Of the shared images 6, 7 and 8 the base has one right.
    assert "+66.7 [" in row["evidence"]
    assert row["evidence"].endswith("(3 images x 1 seed)")


def test_two_names_of_the_same_runs_decide_nothing(
    judge: Judge, score: Make, a_cell: Make, a_document: Make
) -> None:
    """As 10 and 30 draws at a scale that runs 5."""
    score("five", HIGH)
    cells = (a_cell(column=name, scores=(("five",),), seeds=(0,)) for name in ("ten", "thirty"))
    ten, thirty = ({"row": "madry", "column": name} for name in ("ten", "thirty"))
    row = judge({"better": ten, "than": thirty, "by": -1}, other=a_document(*cells))
    assert row["verdict"] == "not run"
    assert row["evidence"].endswith("not run, at this scale both sides are the same runs")


def test_worst_of_side(judge: Judge, score: Make, a_cell: Make, a_document: Make) -> None:
    score("pgd", HIGH, attack="pgd")
    score("cw", LOW, attack="cw")
    score("base", [1] * 70 + [0] * 30)
    combine = Combine("worst", ("pgd", "cw"))
    worst = a_cell(row="aid", column="worst", scores=(("pgd", "cw"),), seeds=(0,), combine=combine)
    base = a_cell(row="madry", column="worst", scores=(("base",),), seeds=(0,))
    row = judge(part("aid", "madry", "worst"), other=a_document(worst, base))
    assert row["verdict"] == "contradicted"
    assert "-20.0 [" in row["evidence"]
    mean = {**part("aid", "madry", "worst"), "better": [part("aid", "", "worst")["better"]] * 2}
    with pytest.raises(UserError, match="minimum over several attacks"):
        judge(mean, other=a_document(worst, base))


def test_stand_in_is_named(judge: Judge, score: Make, a_cell: Make, a_document: Make) -> None:
    score("a", HIGH)
    score("b", LOW)
    given = {"dataset": "svhn", "used_dataset": "digits", "seeds": (0,)}
    cells = [a_cell(row="aid", scores=(("a",),), **given), a_cell(scores=(("b",),), **given)]
    assert judge(part("aid", "madry"), other=a_document(*cells))["stand_in"] == "digits"


def test_data_sets_are_not_mixed(judge: Judge, a_cell: Make, a_document: Make) -> None:
    cells = [a_cell(row="aid", dataset="svhn"), a_cell()]
    with pytest.raises(UserError, match="differ in data set"):
        judge(part("aid", "madry"), other=a_document(*cells))


def test_a_mean_of_norms_is_decided_over_images(
    judge: Judge, runs_root: Path, a_cell: Make, a_document: Make
) -> None:
    """Under one seed. The norms vary more between images than between the two sides."""
    spec = NormSpec(
        images=ImagesSpec(data="mnist-1", subset=Subset(split="test", n=40, seed=0), run=None),
        classifier="cnn",
        method=MethodSpec(component="adp", version=1, parameters={}, run=None),
        purified=False,
        seed=0,
    )
    norms = np.linspace(5, 50, 40)
    for run, change in (("aid", np.full(40, 1.0)), ("madry", 0.0), ("noise", np.tile([9, -9], 20))):
        finish(RunFolder(runs_root, "norm", run), spec, score_norm=norms + change)
    fields = {"metric": "score_norm", "unit": "norm", "seeds": (0,)}
    rows = a_document(*(a_cell(row=row, scores=((row,),), **fields) for row in PLACES_IN_ORDER))
    row = judge(part("aid", "madry"), other=rows)
    assert row["verdict"] == "supported"
    assert row["evidence"].endswith(": better by +1 [+1, +1] norm (40 images x 1 seed)")
    assert judge(part("madry", "aid"), other=rows)["verdict"] == "contradicted"
    assert judge({**part("aid", "madry"), "by": 2}, other=rows)["verdict"] == "contradicted"
    row = judge(part("noise", "madry"), other=rows)
    assert row["verdict"] == "undecided" and " [-2." in row["evidence"]


def test_a_distance_before_purification_against_one_after(
    judge: Judge, runs_root: Path, a_cell: Make, a_document: Make
) -> None:
    """One run measures both, each in its own column."""
    spec = TraceSpec(
        images=ImagesSpec(data="mnist-1", subset=Subset(split="test", n=40, seed=0), run=None),
        classifier="cnn",
        method=MethodSpec(component="adp", version=1, parameters={}, run=None),
        seed=0,
    )
    attacked = np.linspace(5, 50, 40)
    folder = RunFolder(runs_root, "trace", "one")
    finish(folder, spec, attacked=attacked, purified=attacked - 2)
    fields = {"scores": (("one",),), "seeds": (0,), "unit": "L2"}
    before = a_cell(row="aid", metric="attacked_distance", **fields)
    cells = a_document(before, a_cell(row="madry", metric="purified_distance", **fields))
    row = judge(part("aid", "madry"), other=cells)
    assert row["verdict"] == "supported"
    assert row["evidence"].endswith(": better by +2 [+2, +2] L2 (40 images x 1 seed)")


def test_less_time_is_better_and_one_seed_decides_nothing(
    judge: Judge, runs_root: Path, a_cell: Make, a_document: Make
) -> None:
    spec = TimeSpec(
        images=ImagesSpec(data="mnist-1", subset=Subset(split="test", n=1, seed=0), run=None),
        classifier="cnn",
        methods=(),
        timing=Timing(images=1, batches=(), limit_seconds=60),
        seed=0,
    )
    for run, seconds in (("aid0", 0.1), ("aid1", 0.11), ("pd0", 4.0), ("pd1", 4.01)):
        finish(RunFolder(runs_root, "time", run), spec, seconds=np.array([seconds]))
    given = {"metric": "seconds_per_image", "unit": "seconds"}

    def cells(seeds: tuple[int, ...]) -> Document:
        rows = {
            row: a_cell(row=row, scores=tuple((f"{row}{s}",) for s in seeds), seeds=seeds, **given)
            for row in ("aid", "pd")
        }
        return a_document(*rows.values())

    assert judge(part("aid", "pd"), other=cells((0, 1)))["verdict"] == "supported"
    assert judge(part("pd", "aid"), other=cells((0, 1)))["verdict"] == "contradicted"
    assert judge(part("aid", "pd"), other=cells((0,)))["verdict"] == "undecided"
    faster = {**part("aid", "pd"), "times": 30}  # about 38 times
    assert judge(faster, other=cells((0, 1)))["verdict"] == "supported"
    assert judge(faster | {"times": 50}, other=cells((0, 1)))["verdict"] == "contradicted"
