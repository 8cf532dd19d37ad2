"""Cells that combine others: what the planner makes of a mean, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from purifiers.core.errors import UserError
from purifiers.plan.cells import Cell, Combine, Flag
from purifiers.plan.graph import with_ancestors
from purifiers.plan.plan import Plan

PAPER = {
    "classifiers": {
        "small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1},
        "deeper": {"component": "wide_resnet", "depth": 16, "widen_factor": 1},
    },
    "trainings": {"natural": {"component": "natural"}},
    "attacks": {
        "pgd": {"component": "pgd", "eps": 0.1, "steps": 4, "step_size": 0.03},
        "fgsm": {"component": "fgsm", "eps": 0.1},
        "corruption": {"component": "common_corruption"},
    },
}
DEFAULTS = {"dataset": "digits", "classifier": "small", "training": "natural", "methods": []}
BY_SEVERITY = {"attack": "corruption", "mean_over": {"severity": [1, 2, 3, 4, 5]}}
DEEPER = {"classifier": "deeper"}

Make = Callable[..., Plan]


@pytest.fixture
def make(toy_plan: Make) -> Make:
    """``make(column={...}, other={...})``: the plan of a table with one cell per column."""
    return lambda **cells: toy_plan(PAPER, DEFAULTS, rows={"row": {}}, columns=cells)


def cells(plan: Plan) -> dict[str, Cell]:
    return {cell.column: cell for cell in plan.documents["toy/table_1"].cells}


def test_a_mean_of_columns_takes_their_very_runs(make: Make) -> None:
    found = cells(make(clean={}, pgd={"attack": "pgd"}, mean={"mean_of": ["clean", "pgd"]}))
    assert found["mean"].scores == ((*found["clean"].scores[0], *found["pgd"].scores[0]),)
    assert [cell.mean for cell in found.values()] == [False, False, True]
    assert found["mean"].combine == Combine("mean", ("clean", "pgd"))
    assert found["mean"].attack_label == "mean of clean, pgd"
    assert [cell.attacked for cell in found.values()] == [False, True, True]
    assert not any(cell.model_free for cell in found.values())


def test_the_worst_of_columns_takes_their_very_runs(make: Make) -> None:
    found = cells(make(clean={}, pgd={"attack": "pgd"}, worst={"worst_of": ["clean", "pgd"]}))
    assert found["worst"].scores == ((*found["clean"].scores[0], *found["pgd"].scores[0]),)
    assert found["worst"].combine == Combine("worst", ("clean", "pgd"))
    assert found["worst"].attack_label == "worst of clean, pgd"
    assert found["worst"].attacked and not found["worst"].mean


def test_the_worst_case_per_image_takes_the_runs_of_its_columns(make: Make) -> None:
    columns = {"pgd": {"attack": "pgd"}, "fgsm": {"attack": "fgsm"}}
    found = cells(make(**columns, worst={"worst_image_of": ["pgd", "fgsm"]}))
    assert found["worst"].scores == ((*found["pgd"].scores[0], *found["fgsm"].scores[0]),)
    assert found["worst"].attack_label == "worst case per image of pgd, fgsm"
    assert found["worst"].per_image and not found["worst"].mean


def test_the_worst_over_attacks_has_a_run_per_attack(make: Make) -> None:
    found = cells(make(pgd={"attack": "pgd"}, worst={"worst_over": ["pgd", "fgsm"]}))
    (pgd, fgsm) = found["worst"].scores[0]
    assert (pgd,) == found["pgd"].scores[0] and "-fgsm-" in fgsm
    assert found["worst"].combine == Combine("worst", ("pgd", "fgsm"))
    assert found["worst"].attack_label == "worst of pgd, fgsm"
    assert found["worst"].attacked and not found["worst"].mean


def test_a_single_run_is_not_combined(make: Make) -> None:
    found = cells(make(clean={}, pgd={"attack": "pgd"}))
    assert [cell.combine for cell in found.values()] == [None, None]
    assert [cell.attack_label for cell in found.values()] == ["none", "pgd"]


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        (Flag("note", "unreliable"), "unreliable"),
        (Flag("words", "ReLU"), "published: ReLU"),
        (Flag("doubt", "too high"), "doubtful: too high"),
        (Flag("remark", "stops early"), "stops early"),
        (Flag("data", "digits: resized"), "digits: resized"),
        (Flag("run", "seed 0 not run"), "seed 0 not run"),
    ],
)
def test_a_flag_in_words(flag: Flag, text: str) -> None:
    assert str(flag) == text


def test_a_mean_over_a_parameter_has_a_run_per_value(make: Make) -> None:
    plan = make(noise=BY_SEVERITY)
    cell = cells(plan)["noise"]
    attacks = [plan.runs[run].spec.attack.parameters for run in cell.scores[0]]
    assert [attack["severity"] for attack in attacks] == [1, 2, 3, 4, 5]
    assert cell.mean and cell.attacked and cell.model_free
    assert cell.combine == Combine("mean", ("1", "2", "3", "4", "5"), "severity")
    assert cell.attack_label == "corruption, mean over severity 1, 2, 3, 4, 5"
    made_here = "corrupted here with the formulas and constants of CIFAR-10-C, not its own files"
    assert cell.flags == (Flag("remark", made_here),)


def test_one_corrupted_set_serves_all_classifiers(make: Make) -> None:
    plan = make(small={"attack": "corruption"}, deeper={"attack": "corruption"} | DEEPER)
    (small,), (deeper,) = (cells(plan)[name].scores[0] for name in ("small", "deeper"))
    assert small != deeper
    (attack,) = (run for run in plan.runs.values() if run.stage == "attack")
    assert attack in plan.runs[small].inputs and attack in plan.runs[deeper].inputs
    assert [run.stage for run in attack.inputs] == ["dataset"]


def test_means_of_means_count_every_part(make: Make) -> None:
    blur = {"override": {"attack.corruption": {"corruption": "gaussian_blur"}}}
    found = cells(
        make(mean={"mean_of": ["noise", "blur"]}, noise=BY_SEVERITY, blur=BY_SEVERITY | blur)
    )
    assert found["mean"].scores == ((*found["noise"].scores[0], *found["blur"].scores[0]),)
    assert len(set(found["mean"].scores[0])) == 10 and found["mean"].model_free


def test_what_cannot_be_made_is_not_implemented(make: Make) -> None:
    frost = {"override": {"attack.corruption": {"corruption": "frost"}}}
    files = {"override": {"attack.corruption": {"corruption": "frost", "source": "files"}}}
    plan = make(frost=BY_SEVERITY | frost, files=BY_SEVERITY | files)
    found = cells(plan)
    assert found["frost"].state == "not implemented"
    assert found["frost"].reason == (
        "no library here makes frost in a few lines; it needs CIFAR-10-C/frost.npy"
    )
    assert found["files"].state == "planned" and found["files"].flags == ()
    behind = with_ancestors(plan.runs[run] for run in found["files"].scores[0])
    assert {run.id for run in behind} == plan.runs.keys()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"mean": {"mean_of": ["cleen"]}, "clean": {}}, "mean_of: .*did you mean 'clean'"),
        ({"mean": {"mean_over": {"severity": [1]}}}, "mean_over needs an attack"),
        ({"mean": {"mean_of": ["mean"]}}, "column 'mean' has its own mean_of"),
        (
            {"mean": {"mean_of": ["worst"]}, "worst": {"worst_over": ["pgd", "fgsm"]}},
            "column 'worst' has its own worst_over",
        ),
        ({"mean": BY_SEVERITY | {"mean_over": {"sever": [1]}}}, "no parameter 'sever'"),
        ({"noise": {"attack": "corruption", "threat_model": "white_box"}}, "queries no model"),
    ],
)
def test_what_is_refused(make: Make, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**columns)
