"""Collect what each page shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purifiers.core.errors import UserError
from purifiers.plan.cells import ScaleInfo
from purifiers.plan.declarations import Paper, blocks_of, load_paper, paper_names
from purifiers.site import cells
from purifiers.site.prices import provenance_text
from purifiers.site.results import Row, Table

CLAIM_MARKS = {"supported": ("✓", "match"), "contradicted": ("✗", "differs")}
"""Verdict of a claim to its mark and CSS class."""
OTHER_CLAIM = ("?", "open")

RANK_COLUMNS = (
    ("rank", "Rank", "rank_low", "rank_high"),
    ("base", "Base", "", ""),
    ("audit", "Audit", "audit_low", "audit_high"),
    ("gain", "Gain over the base", "gain_low", "gain_high"),
    ("protocol_gain", "Protocol's gain", "", ""),
    ("clean", "Clean", "", ""),
    ("oblivious", "Attacks on the classifier", "", ""),
    ("single", "One draw", "", ""),
    ("majority", "Majority of 5", "", ""),
    ("any_of_5", "Any of 5", "", ""),
    ("corruption", "Noise", "", ""),
    ("seconds_per_image", "s/image", "", ""),
    ("train_minutes", "Fit (min)", "", ""),
)
"""Columns of the ranking: name in the CSV, heading, and the names of its interval."""

Counts = list[tuple[str, str, str, int]]
"""Verdict, mark, CSS class and number, per verdict that occurs."""


class Papers:
    """The papers' declarations, for titles and labels; ids stand in for what is not declared."""

    def __init__(self, root: Path) -> None:
        self.papers: dict[str, Paper] = {n: load_paper(root, n) for n in paper_names(root)}

    def check(self, tables: Iterable[Table]) -> None:
        """Raise a :class:`UserError` for a table of a paper that is not declared."""
        for table in tables:
            if table.paper not in self.papers:
                raise UserError(
                    f"{table.csv}: there is no paper benchmarks/{table.paper}; remove the folder"
                )

    def title(self, paper: str) -> str:
        """The paper's title."""
        return str(self.papers[paper].declared["title"])

    def document(self, paper: str, document: str) -> dict[str, Any]:
        """Content of the document's declaration; empty if there is none any more."""
        return self.papers[paper].documents.get(document, {})

    def stems(self, paper: str) -> list[str]:
        """The paper's documents in reading order."""
        return list(self.papers[paper].documents)

    def status(self, paper: str, document: str) -> str:
        """``measured`` if the document has numbers to reproduce, else what it is."""
        return str(self.document(paper, document).get("status", "measured"))

    def counts(self, tables: Iterable[Table]) -> Counts:
        """Count the verdicts of all tables that have numbers to reproduce."""
        measured = [t for t in tables if self.status(t.paper, t.document) == "measured"]
        return cells.counts([row for table in measured for row in table.rows])


def name_of(document: str) -> str:
    """``table_3`` to ``"Table 3"``."""
    words = document.replace("_", " ")
    return words[:1].upper() + words[1:]


def heading(papers: Papers, paper: str, document: str) -> str:
    """Heading of a document, such as ``"Table 3. White-box accuracy"``."""
    title = papers.document(paper, document).get("title")
    return f"{name_of(document)}. {title}" if title else name_of(document)


def grids(table: Table, content: Mapping[str, Any], first: int) -> list[dict[str, Any]]:
    """Arrange a table's cells in blocks of rows and columns, as the CSV orders them.

    Args:
        content: the document's declaration, for the labels.
        first: index of the first cell on the page.
    """
    declared = {block["id"]: block for block in blocks_of(dict(content))}
    bare = not any(row["published"] for row in table.rows)
    by_block: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for index, row in enumerate(table.rows, first):
        shown = {"shown": cells.shown(row, bare), "index": index}
        by_block.setdefault(row["block"], {})[row["row"], row["column"]] = shown
    result = []
    for name, grid in by_block.items():
        block = declared.get(name, {})
        rows = _labels(block, "rows", (row for row, _ in grid))
        columns = _labels(block, "columns", (column for _, column in grid))
        lines = [
            (label, [grid.get((row, column)) for column in columns]) for row, label in rows.items()
        ]
        label = block.get("label", name if len(by_block) > 1 else "")
        result.append({"label": label, "columns": list(columns.values()), "rows": lines})
    return result


def _labels(block: Mapping[str, Any], axis: str, ids: Iterable[str]) -> dict[str, str]:
    """Labels of the ids that occur, in order of their first occurrence."""
    labels = {str(e["id"]): str(e.get("label", e["id"])) for e in block.get(axis, ())}
    return {name: labels.get(name, name) for name in dict.fromkeys(ids)}


def cell_data(tables: list[Table], content: Mapping[str, Any]) -> str:
    """JSON of the details of all cells of a document's page, safe inside a script element.

    Most texts repeat. ``texts`` has each once, and the cells have positions in it.
    """
    declared = {block["id"]: block for block in blocks_of(dict(content))}
    listed = []
    for table in tables:
        for row in table.rows:
            block = declared.get(row["block"], {})
            labels = [
                block.get("label", "") if len(declared) > 1 else "",
                _labels(block, "rows", [row["row"]])[row["row"]],
                _labels(block, "columns", [row["column"]])[row["column"]],
            ]
            listed.append((list(filter(None, labels)), table.scale, cells.details(row)))
    return _dialogs(cells.DETAILS, listed, {table.scale: _shared(table) for table in tables})


def rank_data(ranked: Sequence[tuple[str, str, Row]], shared: Mapping[str, Any]) -> str:
    """JSON of the details of all ranked defences, safe inside a script element.

    Args:
        ranked: the scale, the data set and the line of each defence.
        shared: per scale the details that all its defences have, see :func:`ranking_origin`.
    """
    headings = [heading for _, heading, _, _ in RANK_COLUMNS]
    labels = [*headings, "n", "Seeds", "Signs of a weak attack"]
    listed = []
    for scale, dataset, row in ranked:
        values = [
            row[name] + (f" ({row[low]} to {row[high]})" if low and row[low] else "")
            for name, _, low, high in RANK_COLUMNS
        ]
        values += [f"{row['images']} images", row["seeds"], row["warnings"]]
        listed.append(([dataset, row["defence"]], scale, values))
    return _dialogs(labels, listed, shared)


def ranking_origin(table: Table) -> dict[str, str]:
    """Scale, provenance and command of a ranking's document."""
    return {**_shared(table), "Command": f"make field SCALE={table.scale}"}


def _shared(table: Table) -> dict[str, str]:
    return {
        "Scale": table.scale,
        "Provenance": provenance_text(table.provenance),
        "Command": table.command,
    }


def _dialogs(
    labels: Sequence[str],
    listed: Sequence[tuple[list[str], str, list[str]]],
    shared: Mapping[str, Any],
) -> str:
    """JSON of the details that a page shows: title, scale and values of each."""
    position: dict[str, int] = {}

    def coded(texts: Iterable[str]) -> list[int]:
        return [position.setdefault(text, len(position)) for text in texts]

    entries = [
        {"title": coded(title), "scale": scale, "values": coded(values)}
        for title, scale, values in listed
    ]
    data = {"labels": labels, "scales": shared, "texts": list(position), "cells": entries}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def stamp(table: Table, info: ScaleInfo) -> str:
    """The table's own stamp, or for a figure the scale and its stand-in data."""
    if table.stamp:
        return table.stamp
    note = f" {info.stand_in_note}." if any(row["stand_in"] for row in table.rows) else ""
    return f"Scale {info.label}.{note}"


def notes(table: Table, content: Mapping[str, Any]) -> str:
    """Markdown below the grids; its headings are one level lower than in the table's own file."""
    if table.stamp:
        return table.notes.replace("\n## ", "\n### ")
    return "\n".join(f"- {' '.join(note.split())}" for note in content.get("notes", ()))


def claim_view(claim: Row) -> dict[str, str]:
    """A claim with its mark and CSS class."""
    mark, key = CLAIM_MARKS.get(claim["verdict"], OTHER_CLAIM)
    return {**claim, "mark": mark, "key": key}


def claim_counts(claims: list[Row]) -> Counts:
    """Count the verdicts of claims; those that are neither supported nor contradicted together."""
    found = [CLAIM_MARKS.get(claim["verdict"], OTHER_CLAIM)[1] for claim in claims]
    names = {"match": "supported", "differs": "contradicted", "open": "undecided or not run"}
    marks = {key: mark for mark, key in (*CLAIM_MARKS.values(), OTHER_CLAIM)}
    return [(n, marks[key], key, found.count(key)) for key, n in names.items() if key in found]


def rank_view(row: Row, index: int) -> dict[str, Any]:
    """Texts of a ranked defence, with the number that each column is sorted by.

    Args:
        index: place of its details on the page.
    """
    values = []
    for name, _, low, high in RANK_COLUMNS:
        form = "{:.3g}" if name in COSTS else "{:.1f}"
        is_number = bool(row[name]) and name not in ("base", "rank")
        text = form.format(float(row[name])) if is_number else row[name]
        ends = [row[low], row[high]] if low and row[low] else []
        if name != "rank":
            ends = [form.format(float(end)) for end in ends]
        values.append({"text": text, "interval": " to ".join(ends), "order": row[name]})
    weak = bool(row["warnings"])
    return {"defence": row["defence"], "weak": weak, "values": values, "index": index}


COSTS = ("seconds_per_image", "train_minutes")
