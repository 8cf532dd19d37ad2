"""Keep the values of an earlier report whose runs are not here, such as those of a fresh clone."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.errors import UserError
from purifiers.plan.cells import Cell, Document, Flag, ScaleInfo
from purifiers.report.aggregate import COUNTS, judged
from purifiers.report.results import FLAGS
from purifiers.report.signs import NOT_PROBED

TEXTS = ("worst_attack", "flags", "warnings")
"""Columns with texts that a kept value brings along."""

MEASURED = (*COUNTS, "reproduced", "ci_low", "ci_high", "seed_low", "seed_high")
"""Columns with numbers that it brings along; published value and verdict are today's."""

PLACE = ("block", "row", "column", "identity")
"""Columns by which a row of an earlier report is found again."""


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of an earlier CSV, as texts; none if there is no file or it lacks a column.

    Raises:
        UserError: the file is no CSV, or a line has too few or too many values.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; restore the file or delete it") from None
    if any("" in row or None in row.values() for row in rows):
        raise UserError(f"{path}: a line is cut off or too long; restore the file or delete it")
    return rows if set(needed) <= set(reader.fieldnames or ()) else []


def with_earlier(
    document: Document,
    frame: pd.DataFrame,
    path: Path,
    scale: ScaleInfo,
    published_n: Mapping[str, int],
) -> tuple[Document, pd.DataFrame, int]:
    """Take values from an earlier report where fewer seeds have finished here.

    A value is taken only if it was measured by the same runs (column ``identity``). A cell that
    failed here stays failed.

    Args:
        document: the document.
        frame: its aggregate, one row per cell.
        path: the CSV of the earlier report.
        scale: the scale of its runs.
        published_n: see :func:`purifiers.report.aggregate.aggregate`.

    Returns:
        The document with the flags on the data of the kept values, the rows, and the number of
        kept values.
    """
    before = {
        tuple(row[name] for name in PLACE): row
        for row in read_rows(path, (*PLACE, *TEXTS, *MEASURED))
        if row["reproduced"] and row["identity"]
    }
    cells, rows, kept = [], [], 0
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        earlier = before.get((cell.block, cell.row, cell.column, cell.identity))
        if earlier and row["verdict"] != "failed" and int(earlier["seeds"]) > row["seeds"]:
            cell, values = _kept(cell, earlier)
            row = dict[Any, Any](row) | values | judged(cell, values, scale, published_n)
            kept += 1
        cells.append(cell)
        rows.append(row)
    if not kept:
        return document, frame, 0
    restored = pd.DataFrame(rows, columns=frame.columns).astype(frame.dtypes)
    return dataclasses.replace(document, cells=tuple(cells)), restored, kept


def _kept(cell: Cell, earlier: Mapping[str, str]) -> tuple[Cell, dict[str, Any]]:
    """The cell with the flags on its data, and the kept columns."""
    flags = _flags(cell, earlier["flags"])
    data = tuple(flag for flag in flags if flag.kind == "data")
    values: dict[str, Any] = {name: earlier[name] for name in TEXTS}
    for name in MEASURED:
        number = int if name in COUNTS else float
        values[name] = number(earlier[name]) if earlier[name] else None
    values[FLAGS] = (*cell.flags, *flags)
    values["suspicious"] = earlier["warnings"] not in ("", NOT_PROBED)
    return dataclasses.replace(cell, flags=(*cell.flags, *data)), values


def _flags(cell: Cell, text: str) -> list[Flag]:
    """The flags in the column ``flags`` that do not follow from the cell's declaration."""
    for flag in cell.flags:
        text = text.replace(str(flag), "", 1)
    pieces = [piece for piece in text.split("; ") if piece]
    of_data = f"{cell.used_dataset}: "
    return [Flag("data" if piece.startswith(of_data) else "run", piece) for piece in pieces]
