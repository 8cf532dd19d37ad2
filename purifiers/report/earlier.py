"""Keep the values of an earlier report whose runs are not here, such as those of a fresh clone."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.errors import UserError
from purifiers.core.recorded_csv import DIGEST, is_intact, provenance_path
from purifiers.plan.cells import Cell, Document, Flag, ScaleInfo
from purifiers.report.aggregate import COUNTS, judged
from purifiers.report.results import FLAGS
from purifiers.report.signs import NOT_PROBED

TEXTS = ("worst_attack", "flags", "warnings")
"""Columns with texts that a kept value brings along."""

MEASURED = (*COUNTS, "reproduced", "ci_low", "ci_high", "seed_low", "seed_high")
"""Columns with numbers that it brings along; published value and verdict are today's."""

SUBSET = re.compile(r"\d+ training and \d+ test images")
"""Part of the flag on a subset, see :meth:`purifiers.datasets._base.Dataset.subset_note`."""

PLACE = ("block", "row", "column", "identity")
"""Columns by which a row of an earlier report is found again."""


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of an earlier CSV, as texts; none if there is no file or it lacks a column.

    Raises:
        UserError: the file is not the one whose digest its provenance records.
    """
    if not path.exists():
        return []
    if not is_intact(path):
        raise UserError(
            f"{path}: its SHA-256 is not the {DIGEST} in {provenance_path(path).name}, so its "
            "values are not kept; restore both files with git checkout, or delete the CSV to "
            "report only the runs that are here"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return rows if set(needed) <= set(reader.fieldnames or ()) else []


def counted(document: Document, rows: Iterable[Mapping[str, str]]) -> tuple[int, int]:
    """Count the values in the rows of an earlier report.

    A value on a subset of a data set counts as today's, whatever its identity: that has the digest
    of the subset, which may not be here.

    Returns:
        The number that today's runs measured, and the number of all others.
    """
    planned = set(map(attrgetter(*PLACE), document.cells))
    places = {place[:-1] for place in planned}
    measured = [row for row in rows if row["reproduced"]]
    current = 0
    for row in measured:
        place = tuple(map(row.get, PLACE))
        on_subset = place[:-1] in places and SUBSET.search(row.get("flags") or "")
        current += place in planned or bool(on_subset)
    return current, len(measured) - current


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

    Raises:
        UserError: runs are missing here, and the CSV fails the check of :func:`read_rows`.
    """
    if not any(map(_incomplete, document.cells, frame.to_dict("records"))):
        return document, frame, 0
    before = {
        tuple(row[name] for name in PLACE): row
        for row in read_rows(path, (*PLACE, *TEXTS, *MEASURED))
        if row["reproduced"] and row["identity"]
    }
    cells, rows, kept = [], [], 0
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        earlier = before.get((cell.block, cell.row, cell.column, cell.identity))
        if earlier and _incomplete(cell, row) and int(earlier["seeds"]) > row["seeds"]:
            cell, values = _kept(cell, earlier)
            row = dict[Any, Any](row) | values | judged(cell, values, scale, published_n)
            kept += 1
        cells.append(cell)
        rows.append(row)
    if not kept:
        return document, frame, 0
    restored = pd.DataFrame(rows, columns=frame.columns).astype(frame.dtypes)
    return dataclasses.replace(document, cells=tuple(cells)), restored, kept


def _incomplete(cell: Cell, row: Mapping[Any, Any]) -> bool:
    """Whether seeds of a cell that did not fail have no finished run here."""
    return bool(row["verdict"] != "failed" and row["seeds"] < len(cell.seeds))


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
    """The flags in the column ``flags`` that do not follow from the cell's declaration.

    Those on the data begin with the data set or with the run of a training.
    """
    for flag in cell.flags:
        text = text.replace(str(flag), "", 1)
    pieces = [piece for piece in text.split("; ") if piece]
    of_data = re.compile(rf"(?:{re.escape(cell.used_dataset or '')}|\S+-[0-9a-f]{{8}}): ")
    return [Flag("data" if of_data.match(piece) else "run", piece) for piece in pieces]
