"""The audit's picture keeps the two protocols apart."""

from __future__ import annotations

from pathlib import Path

from purifiers.plan.plan import make_plan
from purifiers.report.aggregate import aggregate
from purifiers.report.figures import _audit_pairs
from purifiers.report.runs import Runs

ROOT = Path(__file__).resolve().parents[3]


def test_a_worst_of_column_belongs_to_neither_side(tmp_path: Path) -> None:
    plan = make_plan(ROOT, "smoke", ["aid/audit"])
    document = plan.documents["aid/audit"]
    frame = aggregate(document, plan.scale.info(), Runs(tmp_path, lambda _: None), None)
    value = {"pgd_oblivious": 60.0, "pgd_white_box": 20.0, "worst": 20.0, "clean": 90.0}
    frame["reproduced"] = [value[cell.column] for cell in document.cells]
    pairs = [pair for block in _audit_pairs(document, frame).values() for pair in block]
    assert pairs and all(pair[1:] == (60.0, 20.0) for pair in pairs)
