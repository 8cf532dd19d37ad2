"""The audit's picture keeps the two protocols apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from purifiers.plan.cells import Cell
from purifiers.plan.plan import make_plan
from purifiers.report.aggregate import aggregate
from purifiers.report.figures import _audit_pairs, _side
from purifiers.report.runs import Runs

ROOT = Path(__file__).resolve().parents[3]


def test_worst_of_and_transfer_belong_to_neither_side(tmp_path: Path) -> None:
    plan = make_plan(ROOT, "smoke", ["aid/audit"])
    document = plan.documents["aid/audit"]
    frame = aggregate(document, plan.scale.info(), Runs(tmp_path, lambda _: None), None)
    value = {"pgd_oblivious": 60.0, "pgd_white_box": 20.0}
    other = {"clean": 90.0, "pgd_transfer": 10.0, "worst": 10.0}
    frame["reproduced"] = [(value | other)[cell.column] for cell in document.cells]
    pairs = [pair for block in _audit_pairs(document, frame).values() for pair in block]
    assert pairs and all(pair[1:] == (60.0, 20.0) for pair in pairs)


@pytest.mark.parametrize(
    ("threat_model", "source", "side"),
    [
        ("white_box", "", "adaptive"),
        ("black_box", "", "adaptive"),
        ("black_box", "cnn, natural", ""),
        ("transfer", "cnn, natural", ""),
        ("oblivious", "", "protocol"),
        ("", "", "protocol"),
    ],
)
def test_sides(a_cell: Callable[..., Cell], threat_model: str, source: str, side: str) -> None:
    assert _side(a_cell(threat_model=threat_model, source=source)) == side
