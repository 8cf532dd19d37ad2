"""Cells that combine others: what the planner makes of a mean, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from purifiers.core.errors import UserError
from purifiers.plan.cells import Cell
from purifiers.plan.plan import Plan

PAPER = {
    "id": "toy",
    "title": "A paper of the tests' own",
    "seed_document": "none",
    "settings": {"digits": {}},
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
    assert found["mean"].attack == "mean of clean, pgd"
    assert not any(cell.blind for cell in found.values())


def test_a_mean_over_a_parameter_has_a_run_per_value(make: Make) -> None:
    plan = make(noise=BY_SEVERITY)
    cell = cells(plan)["noise"]
    attacks = [plan.runs[run].spec["attack"]["parameters"] for run in cell.scores[0]]
    assert [attack["severity"] for attack in attacks] == [1, 2, 3, 4, 5]
    assert cell.mean and cell.blind
    assert cell.attack == "corruption, mean over severity 1, 2, 3, 4, 5"
    assert cell.flags == (
        "corrupted here with the formulas and constants of CIFAR-10-C, not its own files",
    )


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
    assert len(set(found["mean"].scores[0])) == 10 and found["mean"].blind


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
    assert not [run for run in plan.runs if run not in behind(plan, found["files"])]


def behind(plan: Plan, cell: Cell) -> set[str]:
    pending, seen = [plan.runs[run] for run in cell.scores[0]], set()
    while pending:
        run = pending.pop()
        seen.add(run.id)
        pending += run.inputs
    return seen


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"mean": {"mean_of": ["cleen"]}, "clean": {}}, "mean_of: .*did you mean 'clean'"),
        ({"mean": {"mean_over": {"severity": [1]}}}, "mean_over takes a parameter of the attack"),
        ({"mean": {"mean_of": ["mean"]}}, "column 'mean' has a mean_of of its own"),
        (
            {"mean": {"mean_of": ["worst"]}, "worst": {"worst_over": ["pgd", "fgsm"]}},
            "column 'worst' has a worst_over of its own",
        ),
        ({"mean": BY_SEVERITY | {"mean_over": {"sever": [1]}}}, "no parameter 'sever'"),
        ({"noise": {"attack": "corruption", "threat_model": "white_box"}}, "queries no model"),
    ],
)
def test_what_is_refused(make: Make, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**columns)
