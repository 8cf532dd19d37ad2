from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from purifiers.core import registry
from purifiers.report.status import status_markdown

Make = Callable[..., Any]


def test_counts_per_scale_and_methods(
    a_cell: Make, a_document: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "exists", lambda kind, name: (kind, name) == ("method", "aid"))
    absent = {"state": "not implemented", "reason": "method pixel_defend is not implemented"}
    cells = [
        a_cell(methods=("aid",)),
        a_cell(methods=("pd",), **absent),
        a_cell(methods=("pd", "aid_strong"), **absent),
        a_cell(methods=(), state="quoted"),
    ]
    excluded = [a_cell(methods=cell.methods, state="not run") for cell in cells]
    settings = a_document(
        a_cell(document="table_5", state="configuration"), title="Set|up", status="configuration"
    )
    other = a_document(*(a_cell(document=stem, methods=("aid",)) for stem in ("table_11a", "")))
    audit = a_document(a_cell(document="audit", methods=("aid",), state="quoted"), paper="idfr")
    components = {
        "aid": {"aid": "aid", "aid_strong": "aid", "pd": "pixel_defend"},
        "idfr": {"aid": "aid"},
    }
    text = status_markdown(
        {
            "smoke": [a_document(*cells), other, settings, audit],
            "desk": [a_document(*excluded), settings],
        },
        components,
    )
    lines = text.splitlines()
    assert lines[0] == "| Paper | Document | Title | Cells | smoke | desk |"
    assert "| aid | table 3 | Accuracy | 4 | 1 / 2 / 1 | 0 / 0 / 0 |" in lines
    assert "| aid | table 5 | Set\\|up | 1 | configuration | configuration |" in lines
    assert "| idfr | audit | Accuracy | 1 | 0 / 0 / 1 | – |" in lines
    assert "| aid | yes | aid: table 3, 11a; idfr: audit |" in lines
    assert "| pixel_defend | no | aid: table 3 |" in lines
