"""The audit's chart keeps attacks on the classifier and on the defence apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from purifiers.plan.cells import Cell, Combine, Document
from purifiers.plan.plan import Plan
from purifiers.report.aggregate import aggregate
from purifiers.report.audit_chart import COLOURS, AuditRow, audit_rows, draw_audit
from purifiers.report.results import Results


def test_carried_over_attacks_count_in_the_audit_alone(
    plans: dict[str, Plan], tmp_path: Path
) -> None:
    plan = plans["smoke"]
    document = plan.documents["aid/audit"]
    assert document.plot == "audit"
    frame = aggregate(document, plan.scale.info(), Results(tmp_path, lambda _: None), None)
    value = {"pgd_oblivious": 60.0, "pgd_white_box": 20.0}
    other = {"clean": 90.0, "pgd_transfer": 10.0, "worst": 9.0}
    frame["reproduced"] = [(value | other)[cell.column] for cell in document.cells]
    found = [row for rows in audit_rows(document, frame).values() for row in rows]
    assert found and all((row.oblivious, row.audit) == (60.0, 9.0) for row in found)
    by_label = {row.label: row for row in found}
    assert by_label["Madry"].purifier == "" and by_label["Madry"].base == "Madry"
    aid = by_label["Madry + AID-Purifier"]
    assert (aid.base, aid.purifier) == ("Madry", "AID-Purifier")


def test_without_an_attack_on_the_defence_there_is_nothing_to_compare(
    plans: dict[str, Plan], tmp_path: Path
) -> None:
    plan = plans["smoke"]
    document = plan.documents["aid/audit"]
    frame = aggregate(document, plan.scale.info(), Results(tmp_path, lambda _: None), None)
    frame["reproduced"] = [
        np.nan if cell.threat_model == "white_box" else 50.0 for cell in document.cells
    ]
    assert audit_rows(document, frame) == {} and draw_audit(document, frame) is None


@pytest.fixture
def audit(a_cell: Callable[..., Cell], a_document: Callable[..., Document]) -> Document:
    cells = []
    for training in ("natural", "madry"):
        for methods in ((), ("aid",)):
            label = training.title() + (" + AID" if methods else "")
            row: dict[str, Any] = {"row": label, "row_label": label, "training": training}
            row |= {"methods": methods, "document": "audit"}
            cells.append(a_cell(**row, column="o"))
            cells.append(a_cell(**row, column="w", threat_model="white_box"))
    return a_document(*cells, plot="audit")


def test_each_point_stands_where_its_accuracies_are(audit: Document) -> None:
    values = [1.0, 0.0, 30.0, 2.0, 50.0, 50.0, 60.0, 40.0]
    frame = pd.DataFrame({"reproduced": values, "suspicious": [False] * 7 + [True]})
    assert audit_rows(audit, frame)["MNIST"][3] == AuditRow(
        "Madry + AID", "Madry", "AID", oblivious=60.0, audit=40.0, weak=True
    )
    picture = draw_audit(audit, frame)
    assert picture is not None
    points, dots = picture.axes
    drawn = [one for one in points.collections if isinstance(one, PathCollection)]
    places = [tuple(np.asarray(one.get_offsets())[0]) for one in drawn]
    assert places == [(1.0, 0.0), (30.0, 2.0), (50.0, 50.0), (60.0, 40.0)]
    filled = [tuple(np.asarray(one.get_facecolor())[0]) for one in (drawn[1], drawn[3])]
    assert filled == [to_rgba(COLOURS[0]), to_rgba(COLOURS[1])]
    assert all(len(np.asarray(one.get_facecolor())) == 0 for one in (drawn[0], drawn[2]))
    assert [label.get_text() for label in dots.get_yticklabels()] == [
        *("Natural", "Natural + AID", "Madry", "Madry + AID")
    ]
    assert [(mark.get_text(), mark.xy) for mark in dots.texts] == [("!", (60.0, 3))]


@pytest.mark.parametrize(
    ("changes", "queried"),
    [
        ({"threat_model": "white_box"}, "defence"),
        ({"threat_model": "black_box"}, "defence"),
        ({"threat_model": "black_box", "source": "cnn, natural"}, ""),
        ({"threat_model": "transfer", "source": "cnn, natural"}, ""),
        ({"threat_model": "oblivious"}, "classifier"),
        ({"threat_model": ""}, "classifier"),
        ({"threat_model": "", "attack": "none"}, ""),
        ({"threat_model": "oblivious", "model_free": True}, ""),
        ({"threat_model": "oblivious", "combine": Combine("worst", ("pgd", "cw"))}, ""),
    ],
)
def test_what_an_attack_queries(
    a_cell: Callable[..., Cell], changes: dict[str, Any], queried: str
) -> None:
    assert a_cell(**changes).queried == queried
