"""``detector``: a method that refuses images, beside those that purify them, plan to score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.spec import AttackSpec, ScoreSpec
from purifiers.methods.magnet import Magnet
from purifiers.plan.cells import Flag
from purifiers.plan.plan import Plan
from purifiers.report.results import Results
from purifiers.stages.job import run_batch

PAPER = {
    "classifiers": {
        "x": {"component": "wide_resnet", "depth": 10, "widen_factor": 1, "first_stride": 2}
    },
    "trainings": {"natural": {"component": "natural", "epochs": 1, "batch_size": 32}},
    "methods": {
        "identity": {"component": "identity"},
        "magnet": {
            **{"component": "magnet", "width": 2, "activation": "relu", "epochs": 1},
            **{"batch_size": 32, "temperatures": [10]},
        },
        "aid": {"component": "aid", "width": 8},
    },
    "attacks": {
        "pgd": {"component": "pgd", "eps": 0.2, "steps": 2, "step_size": 0.1},
        "auxiliary_aware": {"component": "auxiliary_aware", "steps": 2},
    },
}
DEFAULTS = {"dataset": "digits", "classifier": "x", "training": "natural", "methods": ["identity"]}
CLEAN, PGD = {"attack": "none"}, {"attack": "pgd"}
DETECTED = {"detector": "magnet"}

Make = Callable[..., Plan]


@pytest.fixture
def make(toy_plan: Make) -> Make:
    """``make(row={...}, other={...})``: the plan of a table with one cell per row."""
    return lambda **cells: toy_plan(PAPER, DEFAULTS, rows=cells, columns={"column": {}})


def test_only_the_score_is_another_run(make: Make) -> None:
    """What has no detector keeps its id, and a detector waits for its own fit."""
    before = make(clean=CLEAN, pgd=PGD)
    plan = make(clean=CLEAN, pgd=PGD, detected=PGD | DETECTED)
    assert set(before.runs) < set(plan.runs)
    added = {run.stage: run for run in plan.runs.values() if run.id not in before.runs}
    assert set(added) == {"purifier", "score"}
    score, fit = added["score"], added["purifier"]
    assert isinstance(score.spec, ScoreSpec) and score.spec.detector is not None
    assert fit in score.inputs and score.spec.detector.run == fit.id
    clean = before.runs[before.documents["toy/table_1"].cells[0].scores[0][0]].spec
    assert set(clean.to_json()) == {"images", "classifier", "attack"}
    flags = [cell.flags for cell in plan.documents["toy/table_1"].cells]
    assert flags[:2] == [(), ()]
    detected = "images that magnet detects count as correct when attacked, as wrong when clean"
    assert flags[2] == (Flag("remark", detected),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CLEAN | {"detector": "identity"}, "method 'identity' detects nothing"),
        (PGD | {"detector": "aid"}, "method 'aid' detects nothing"),
        (PGD | {"detector": "magnetic"}, "did you mean 'magnet'"),
    ],
)
def test_a_method_without_a_detector_is_refused(
    make: Make, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(row=row)


def test_the_auxiliary_is_still_the_attacked_one(make: Make) -> None:
    plan = make(row=DETECTED | {"attack": "auxiliary_aware", "auxiliary": "aid"})
    (attack,) = [run for run in plan.runs.values() if run.stage == "attack"]
    assert isinstance(attack.spec, AttackSpec) and attack.spec.auxiliary is not None
    assert attack.spec.auxiliary.component == "aid"


def test_a_method_detects_nothing_of_itself() -> None:
    with pytest.raises(UserError, match="has no detector that decides"):
        Method().detected(torch.zeros(1, 1, 4, 4))


def test_detected_counts_for_attacked_and_against_clean(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all stages, with a detector that refuses the darker half of what it is shown."""
    shown: list[Tensor] = []

    def dark(method: Magnet, images: Tensor) -> Tensor:
        shown.append(images.clone())
        return images.mean(dim=(1, 2, 3)) < 0.3

    monkeypatch.setattr(Magnet, "detected", dark)
    rows = {"clean": CLEAN, "pgd": PGD}
    rows |= {f"{name}_detected": cell | DETECTED for name, cell in rows.items()}
    # the detector sees what the attack made, not what a purifier makes of it
    rows["purified"] = PGD | DETECTED | {"methods": ["magnet"]}
    rows["bare"] = PGD | DETECTED | {"methods": []}
    plan = make(**rows)
    plan.write_specs()
    done: set[str] = set()
    for batch in plan.batches.values():  # in the order of their stages
        if batch.id not in done:
            done.add(batch.id)
            entries = [
                {"id": r.id, "spec": r.spec.to_json(), "passes": 0, "size_bytes": 0}
                for r in batch.runs
            ]
            content = {"stage": batch.stage, "batch": batch.id, "runs": entries, "device": "cpu"}
            content |= {"batch_size": 32, "checkpoint_seconds": 60.0}
            assert run_batch(content, plan.root / batch.manifest_name, plan.runs_root, 1) == 0
    runs = Results(plan.runs_root, lambda _: None)
    found = {
        cell.row: runs.find(cell).seeds[0][0].scores for cell in plan.documents["toy/table_1"].cells
    }
    assert all(len(images) == 32 for images in shown)
    for name in ("clean", "pgd"):
        plain, with_detector = found[name], found[f"{name}_detected"]
        assert "detected" not in plain
        flagged = with_detector["detected"]
        assert 0 < flagged.sum() < len(flagged)
        expected = plain["correct"] & ~flagged if name == "clean" else plain["correct"] | flagged
        assert expected.tolist() == with_detector["correct"].tolist()
        assert expected.tolist() != plain["correct"].tolist()
    for name in ("purified", "bare"):
        assert found[name]["detected"].equals(found["pgd_detected"]["detected"])
    assert not found["purified"]["linf"].equals(found["bare"]["linf"])
