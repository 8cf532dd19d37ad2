"""Counts, links and sections of the status page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purifiers.core import registry
from purifiers.plan.cells import Cell, Document
from purifiers.report.earlier import PLACE
from purifiers.report.status import status_markdown

Make = Callable[..., Any]

COMPONENTS = {
    "aid": {"aid": "aid", "aid_strong": "aid", "pd": "pixel_defend"},
    "idfr": {"pd": "pixel_defend"},
}


@pytest.fixture(autouse=True)
def _only_aid_is_implemented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "exists", lambda kind, name: (kind, name) == ("method", "aid"))


@pytest.fixture
def documents(a_cell: Make, a_document: Make) -> dict[str, list[Document]]:
    """Two papers; at desk the planned cells of table 3 are left out."""
    cells = [
        a_cell(methods=("aid",)),
        a_cell(methods=("aid_strong",)),
        a_cell(methods=("pd", "aid"), state="not implemented"),
        a_cell(methods=(), state="quoted"),
    ]
    left_out = [a_cell(state="not run") if cell.state == "planned" else cell for cell in cells]
    rest = [
        a_document(a_cell(document="table_11a", methods=("aid",)), title="Set|up"),
        a_document(a_cell(document="table_5", state="configuration"), status="configuration"),
        a_document(document="table_6", status="configuration"),
        a_document(document="figure_1", status="qualitative"),
        a_document(
            a_cell(document="audit", methods=("pd",), state="not implemented"), paper="idfr"
        ),
    ]
    return {"smoke": [a_document(*cells), *rest], "desk": [a_document(*left_out), *rest]}


def _commit(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


HEADER = "block,row,column,identity,published,reproduced,flags\n"


def _value(
    cell: Cell, reproduced: str = "1.0", flags: str = "failed,\ntwice", **changes: str
) -> str:
    """A line of a committed table below ``HEADER``."""
    place = {name: changes.get(name, getattr(cell, name)) for name in PLACE}
    return ",".join([*place.values(), "60.0", reproduced, f'"{flags}"']) + "\n"


def test_counts_without_committed_tables(
    documents: dict[str, list[Document]], tmp_path: Path
) -> None:
    lines = status_markdown(documents, COMPONENTS, tmp_path).splitlines()
    smoke = "0 of 3 done, 1 missing, 1 quoted"
    desk = "0 of 1 done, 1 missing, 2 left out, 1 quoted"
    assert lines[:3] == [
        "| Paper | Cells | smoke | desk |",
        "|:--|--:|:--|:--|",
        f"| aid | 5 | {smoke} | {desk} |",
    ]
    assert lines[3] == "| idfr | 1 | 1 missing | 1 missing |"
    assert lines[4] == (
        "| All | 6 | 0 of 3 done, 2 missing, 1 quoted "
        "| 0 of 1 done, 2 missing, 2 left out, 1 quoted |"
    )
    assert "## aid (`aid`)" in lines
    assert "| table 11a | Set\\|up | 1 | 0 of 1 done | 0 of 1 done |" in lines
    assert "Not measured: table 5, 6 (configuration); figure 1 (qualitative)." in lines
    assert not any("](" in line for line in lines)


def test_done_cells_are_those_reproduced_in_the_committed_table(
    documents: dict[str, list[Document]], tmp_path: Path
) -> None:
    first, second = documents["smoke"][0].cells[:2]
    table = HEADER + _value(first, "0.0") + _value(second, "")
    _commit(tmp_path, "results/tables/smoke/aid/table_3.csv", table)
    configured = documents["smoke"][2].cells[0]
    _commit(tmp_path, "results/tables/smoke/aid/table_5.csv", HEADER + _value(configured))
    lines = status_markdown(documents, COMPONENTS, tmp_path).splitlines()
    assert lines[2].startswith("| aid | 5 | 1 of 3 done, 1 missing, 1 quoted | 0 of 1 done")
    assert lines[4].startswith("| All | 6 | 1 of 3 done,")
    link = "[1 of 2 done](../results/tables/smoke/aid/table_3.csv), 1 missing, 1 quoted"
    assert f"| table 3 | Accuracy | 4 | {link} | 1 missing, 2 left out, 1 quoted |" in lines


@pytest.mark.parametrize("name", PLACE)
def test_a_value_of_other_runs_or_of_no_cell_is_outdated(
    documents: dict[str, list[Document]], tmp_path: Path, name: str
) -> None:
    first, second = documents["smoke"][0].cells[:2]
    table = HEADER + _value(first) + _value(second, **{name: "another"})
    _commit(tmp_path, "results/tables/smoke/aid/table_3.csv", table)
    lines = status_markdown(documents, COMPONENTS, tmp_path).splitlines()
    assert lines[2].startswith("| aid | 5 | 1 of 3 done, 1 outdated, 1 missing, 1 quoted |")


@pytest.mark.parametrize(
    ("name", "counts"), [("identity", "2 of 3 done,"), ("row", "1 of 3 done, 1 outdated,")]
)
def test_a_value_on_a_subset_that_is_not_here_is_done(
    documents: dict[str, list[Document]], tmp_path: Path, name: str, counts: str
) -> None:
    first, second = documents["smoke"][0].cells[:2]
    note = "cifar100: a subset of 10000 training and 2000 test images"
    table = HEADER + _value(first) + _value(second, flags=note, **{name: "another"})
    _commit(tmp_path, "results/tables/smoke/aid/table_3.csv", table)
    lines = status_markdown(documents, COMPONENTS, tmp_path).splitlines()
    assert lines[2].startswith(f"| aid | 5 | {counts}")


def test_links_only_to_existing_files(documents: dict[str, list[Document]], tmp_path: Path) -> None:
    _commit(tmp_path, "benchmarks/aid/README.md", "# AID-Purifier: a light network\n\nText\n")
    _commit(tmp_path, "results/tables/desk/aid/README.md")
    _commit(tmp_path, "results/tables/desk/aid/table_11a.md")
    table = HEADER + _value(documents["desk"][1].cells[0])
    _commit(tmp_path, "results/tables/desk/aid/table_11a.csv", table)
    lines = status_markdown(documents, COMPONENTS, tmp_path).splitlines()
    index = "[1 of 1 done](../results/tables/desk/aid/README.md), 1 missing"
    assert lines[2].startswith("| [AID-Purifier](aid/README.md) | 5 | 0 of 3 done,")
    assert index in lines[2]
    assert "## AID-Purifier (`aid`)" in lines
    link = "[1 of 1 done](../results/tables/desk/aid/table_11a.md)"
    assert f"| table 11a | Set\\|up | 1 | 0 of 1 done | {link} |" in lines


def test_methods_with_their_papers_and_missing_ones_with_documents(
    documents: dict[str, list[Document]], tmp_path: Path
) -> None:
    text = status_markdown(documents, COMPONENTS, tmp_path)
    assert text.endswith(
        "## Methods\n\n| Method | Implemented | Needed by |\n|:--|:--|:--|\n"
        "| `aid` | yes | aid |\n| `pixel_defend` | no | aid: table 3; idfr: audit |\n"
    )
