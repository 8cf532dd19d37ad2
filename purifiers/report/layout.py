"""Lay out a document as in its paper: blocks of rows and columns, with a stamp and a legend."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from purifiers.plan.cells import Cell, Document, Flag, FlagKind, ScaleInfo, by_block
from purifiers.report.compare import (
    DIFFERS,
    ELSEWHERE,
    MATCH,
    NO_PUBLISHED,
    NOT_COMPARABLE,
    VERDICTS,
)
from purifiers.report.results import COUNTED, FLAGS
from purifiers.report.signs import NOT_PROBED

MARKS = {MATCH: "≈", DIFFERS: "≠", NOT_COMPARABLE: "/", ELSEWHERE: "/", NO_PUBLISHED: "/"}
"""Verdict to the mark between the published and the reproduced value."""

MISSING = {"not run": "–", "not implemented": "n.i.", "failed": "failed"}
"""Verdict to the mark in place of a missing reproduced value."""

WEAK = "!"
"""Mark after a reproduced value whose attack shows signs of weakness."""

DOUBTED = "†"
"""Mark after a published value with evidence against it."""

WEAK_HEADING = "Signs of a weak attack"

WEAK_LEGEND = f"An accuracy marked {WEAK} may be high only because its attack failed."

LONGEST = 200
"""Most characters that a line spends on naming its cells (our choice)."""

LEGEND = (
    "Each cell: published / reproduced ± half the width of Wilson's 95 % interval for the number "
    "of distinct images. Marks: ≈ match, ≠ differs, / not comparable at this scale, · no "
    "published value, – not run, n.i. not implemented, q quoted by the paper from another "
    "publication and not run."
)


@dataclass(frozen=True)
class Block:
    """A grid of cell texts.

    Attributes:
        id: id of the block in its declaration.
        label: heading of the block; may be empty.
        columns: column labels.
        rows: per row its label and one text per column; ``""`` where the paper has no cell.
    """

    id: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def heading(document: Document) -> str:
    """Heading of a document, for example ``"Table 3. White-box accuracy"``."""
    stem = document.document.replace("_", " ")
    return f"{stem[:1].upper()}{stem[1:]}. {document.title}"


def blocks(document: Document, frame: pd.DataFrame) -> list[Block]:
    """Lay out a document's blocks in order; ``frame`` is its aggregate, one row per cell."""
    bare = all(cell.published is None for cell in document.cells)
    grids: dict[str, dict[tuple[str, str], str]] = {}
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        grids.setdefault(cell.block, {})[cell.row, cell.column] = cell_text(cell, row, bare)
    result = []
    for name, cells in by_block(document.cells).items():
        rows = {cell.row: cell.row_label for cell in cells}
        columns = {cell.column: cell.column_label for cell in cells}
        texts_by_row = tuple(
            (label, tuple(grids[name].get((row, column), "") for column in columns))
            for row, label in rows.items()
        )
        result.append(Block(name, cells[0].block_label, tuple(columns.values()), texts_by_row))
    return result


def dataset_text(dataset: str, stand_in: str) -> str:
    """A data set and what stands in for it, such as ``mnist (digits in its place)``."""
    return f"{dataset} ({stand_in} in its place)" if stand_in else dataset


def place(document: Document, cell: Cell) -> str:
    """Name a cell by its row and column, and by its block where there are several."""
    several = len({other.block for other in document.cells}) > 1
    labels = (cell.block_label if several else "", cell.row_label, cell.column_label)
    return " / ".join(label for label in labels if label)


def cell_text(cell: Cell, row: Mapping[Any, Any], bare: bool = False) -> str:
    """Format one cell's published and reproduced value, for example ``"51.64 / 49.2 ±4.4"``.

    Args:
        row: the cell's row of the aggregate.
        bare: leave the published half out; for documents without any published value.
    """
    published = "·" if cell.published is None else f"{cell.published:g}"
    published += DOUBTED if _doubts(cell) else ""
    if cell.state == "configuration":
        return next(iter(_texts(cell.flags, "words")), published)
    if row["verdict"] == "quoted":
        return f"{published} q"
    if pd.isna(row["reproduced"]):
        mark, reproduced = "/", MISSING[row["verdict"]]
    else:
        mark, reproduced = MARKS[row["verdict"]], _number(cell, row)
        reproduced += f" {WEAK}" if row["suspicious"] else ""
    return reproduced if bare else f"{published} {mark} {reproduced}"


def _number(cell: Cell, row: Mapping[Any, Any]) -> str:
    if cell.metric not in COUNTED:
        return f"{row['reproduced']:.3g}"
    return f"{row['reproduced']:.1f} ±{(row['ci_high'] - row['ci_low']) / 2:.1f}"


def data_notes(document: Document) -> list[str]:
    """List how the images differ from the original data set, such as ``cifar10: ...``."""
    notes = (text for cell in document.cells for text in _texts(cell.flags, "data"))
    return list(dict.fromkeys(notes))


def stamp(document: Document, frame: pd.DataFrame, scale: ScaleInfo) -> str:
    """Summarise the scale, stand-in data sets, images and seeds in one line."""
    named = scale.label.startswith(scale.name)
    parts = [f"Scale {scale.label}" if named else f"Scale {scale.name} ({scale.label})"]
    if document.status != "measured":
        return f"{parts[0]}; {document.status}: nothing to run."
    by_stand_in: dict[str, dict[str, None]] = {}
    for cell, used in zip(document.cells, frame["stand_in"], strict=True):
        if used:
            by_stand_in.setdefault(used, {})[cell.dataset] = None
    listed = [f"{used} for {', '.join(names)}" for used, names in by_stand_in.items()]
    if listed:
        parts.append(f"stand-in data: {', '.join(listed)}")
    elif any(cell.used_dataset for cell in document.cells):
        parts.append("no stand-in data")
    parts.extend(data_notes(document))
    if scale.reduced:
        parts.append("reduced sizes and budgets")
    measured = frame[frame["reproduced"].notna()]
    if measured.empty:
        parts.append("nothing reproduced yet")
    else:
        if measured["images"].notna().any():
            parts.append(f"n = {_range(measured['images'])} images")
        parts.append(f"seeds: {_range(measured['seeds'])}")
    return "; ".join(parts) + "."


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def verdict_counts(frame: pd.DataFrame) -> str:
    """Count the verdicts, for example ``"12 match, 3 differs"``, in the order of ``VERDICTS``."""
    counts = frame["verdict"].value_counts()
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts) or "none"


def verdicts_sentence(document: Document, frame: pd.DataFrame) -> str:
    """Sentence on the verdicts, after a space; empty where nothing is measured."""
    return f" Verdicts: {verdict_counts(frame)}." if document.status == "measured" else ""


def remarks(document: Document, frame: pd.DataFrame) -> list[str]:
    """List the cells' flags and the reasons for missing cells, each after the cells it is about."""
    flagged: dict[str, list[Cell]] = {}
    for cell in document.cells:
        for flag in cell.flags:
            if flag.kind != "doubt":
                flagged.setdefault(str(flag), []).append(cell)
    doubted = [
        f"{DOUBTED} {place(document, cell)}: {doubt}"
        for cell in document.cells
        for doubt in _doubts(cell)
    ]
    missing: dict[str, list[Cell]] = {}
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        if reason := "; ".join(_texts(row[FLAGS], "run")):
            text = f"{row['verdict']}: {reason}" if row["verdict"] in MISSING else reason
            missing.setdefault(text, []).append(cell)
    listed = [*flagged.items(), *missing.items()]
    return doubted + [f"{places(document, cells)}: {text}" for text, cells in listed]


def places(document: Document, cells: Collection[Cell]) -> str:
    """Name a group of cells, such as ``CIFAR-10 / ADP, IDFR / PGD; MNIST / ADP``.

    Whole rows, columns and blocks are not listed cell by cell; all cells are ``all cells``. Names
    that hold in every block have no block. Too long a list is the number of cells.
    """
    members = {(cell.block, cell.row, cell.column) for cell in cells}
    blocks = by_block(document.cells)
    named: dict[str, list[str]] = {}
    for block in blocks.values():
        of_block = [cell for cell in block if (cell.block, cell.row, cell.column) in members]
        for text in _within(block, of_block):
            named.setdefault(text, []).append(block[0].block_label)
    texts = []
    for text, labels in named.items():
        prefixes = [""] if len(labels) == len(blocks) else labels
        texts += [" / ".join(filter(None, (prefix, text))) or "all cells" for prefix in prefixes]
    text = "; ".join(texts)
    return text if len(text) <= LONGEST else f"{len(members)} cells (column flags of the CSV)"


def same_runs(document: Document) -> list[str]:
    """Name the columns, and the rows, of a block all of whose cells are the same runs.

    Used at reduced scales, whose limits make different declarations the same, such as 20 and 1,000
    steps. One line per group, such as ``PGD-20, PGD-1000: the same runs at this scale``.
    """
    blocks = by_block(cell for cell in document.cells if cell.identity)
    lines = []
    for cells in blocks.values():
        for axis, other in (("column", "row"), ("row", "column")):
            runs: dict[str, dict[str, str]] = {}
            labels: dict[str, str] = {}
            for cell in cells:
                name = getattr(cell, axis)
                runs.setdefault(name, {})[getattr(cell, other)] = cell.identity
                labels[name] = getattr(cell, f"{axis}_label")
            groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
            for name, identities in runs.items():
                groups.setdefault(tuple(identities.items()), []).append(labels[name])
            prefix = f"{cells[0].block_label} / " if len(blocks) > 1 else ""
            lines += [
                f"{prefix}{', '.join(group)}: the same runs at this scale"
                for group in groups.values()
                if len(group) > 1
            ]
    return lines


def _within(block: Sequence[Cell], cells: Sequence[Cell]) -> list[str]:
    """Name cells of a block by rows with equal columns; all cells of a block are ``""``."""
    all_rows: dict[str, list[str]] = {}
    rows: dict[str, list[str]] = {}
    for of, group in ((all_rows, block), (rows, cells)):
        for cell in group:
            of.setdefault(cell.row, []).append(cell.column)
    row_labels = {cell.row: cell.row_label for cell in block}
    column_labels = {cell.column: cell.column_label for cell in block}
    by_columns: dict[tuple[str, ...], list[str]] = {}
    for row, columns in rows.items():
        whole = columns == all_rows[row]
        by_columns.setdefault(() if whole else tuple(columns), []).append(row)
    texts = []
    for listed, of_rows in by_columns.items():
        rows_text = ", ".join(row_labels[row] for row in of_rows)
        columns_text = ", ".join(column_labels[column] for column in listed)
        whole = len(of_rows) == len(all_rows)
        texts.append(" / ".join(filter(None, ("" if whole else rows_text, columns_text))))
    return texts


def _texts(flags: Iterable[Flag], kind: FlagKind) -> list[str]:
    return [flag.text for flag in flags if flag.kind == kind]


def _doubts(cell: Cell) -> list[str]:
    """Evidence against a cell's published value."""
    return _texts(cell.flags, "doubt")


def weak_attack_notes(document: Document, frame: pd.DataFrame) -> list[str]:
    """List the cells with signs of a weak attack, then the number of cells without any sign.

    Cells with the same signs (mostly of one adversarial set) share a line. Empty if no attacked
    cell is measured.
    """
    probed = unprobed = 0
    marked: dict[str, list[str]] = {}
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        unattacked = not cell.attacked or cell.model_free or cell.stage != "score"
        if unattacked or pd.isna(row["reproduced"]):
            continue
        if row["suspicious"]:
            marked.setdefault(row["warnings"], []).append(place(document, cell))
        elif row["warnings"] == NOT_PROBED:
            unprobed += 1
        else:
            probed += 1
    notes = [f"{'; '.join(places)}: {signs}" for signs, places in marked.items()]
    other = "other " if notes else ""
    if probed:
        notes.append(f"No sign found in {probed} {other}attacked {_cells(probed)}.")
    if unprobed:
        notes.append(
            f"{unprobed} {other}attacked {_cells(unprobed)} not probed: gradients and losses were "
            "not recorded; no other sign found."
        )
    return notes


def _cells(n: int) -> str:
    return "cell" if n == 1 else "cells"
