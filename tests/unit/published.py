"""The papers' declarations as the tests of their numbers read them.

Loading validates each file against its schema. It also refuses a repeated row or column id,
published values of an undeclared row, and a number of values that is not the number of columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from purifiers.plan.declarations import blocks_of, load_paper, paper_names

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
PAPERS = {name: load_paper(ROOT, name) for name in paper_names(ROOT)}
DOCUMENTS = {
    (name, stem): document
    for name, paper in PAPERS.items()
    for stem, document in paper.documents.items()
}
PLACES = [pytest.param(*place, id="/".join(place)) for place in DOCUMENTS]
MEASURED = [
    pytest.param(*place, id="/".join(place))
    for place, document in DOCUMENTS.items()
    if document.get("status", "measured") == "measured"
]


def table(paper: str, stem: str, block: str) -> dict[str, Json]:
    """Published values of one block: row id to column id to value."""
    for known in blocks_of(DOCUMENTS[paper, stem]):
        if known["id"] == block:
            ids = [column["id"] for column in known["columns"]]
            return {
                row: dict(zip(ids, values, strict=True))
                for row, values in known["published"].items()
            }
    raise AssertionError(f"{paper}/{stem} has no block {block}")


def numbers(paper: str, stem: str) -> list[float]:
    """All published numbers of a document."""
    rows = (v for b in blocks_of(DOCUMENTS[paper, stem]) for v in b["published"].values())
    return [value for row in rows for value in row if value is not None]


def cells(document: Json) -> Iterator[Json]:
    """All cells of a document, fragments merged (without their overrides)."""
    for block in blocks_of(document):
        for row in block["rows"]:
            for column in block["columns"]:
                merged: Json = {}
                for part in (
                    document.get("defaults"),
                    *(e.get("cell") for e in (block, row, column)),
                ):
                    merged |= part or {}
                yield merged


def fragments(document: Json) -> Iterator[Json]:
    """Every cell fragment that a document declares."""
    yield document.get("defaults", {})
    for block in blocks_of(document):
        for entry in (block, *block["rows"], *block["columns"]):
            yield entry.get("cell", {})
