"""Read the committed tables, claims and images of ``results/tables``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import read_json
from purifiers.core.errors import UserError
from purifiers.plan.scale import scale_names
from purifiers.report.claims import COLUMNS as CLAIM_COLUMNS
from purifiers.report.compare import VERDICTS
from purifiers.report.layout import dataset_text
from purifiers.report.ranking import Ranked
from purifiers.report.reports import SCALE_ORDER

TABLES = Path("results/tables")
NUMBERS = (
    *("published", "reproduced", "n_correct", "n", "images", "ci_low", "ci_high"),
    *("seeds", "seed_low", "seed_high", "deviation"),
)
"""Columns that hold a number or nothing."""
TEXTS = (
    *("block", "row", "column", "dataset", "classifier", "training", "method", "attack"),
    *("threat_model", "gradient", "metric", "unit", "verdict", "worst_attack", "stand_in"),
    *("flags", "warnings"),
)

DERIVED = ("claims", "ranks", "selection")
"""Stems of CSV files that are made from several cells, and are no documents."""

Row = dict[str, str]
"""One line of a CSV by column, as text."""


@dataclass(frozen=True)
class Table:
    """The committed files of a document at one scale.

    Attributes:
        rows: lines of the CSV, one per cell.
        stamp: first line of the Markdown table; empty for a figure.
        notes: Markdown after the last grid; empty for a figure.
        provenance: content of the provenance file; empty if there is none.
        images: charts and image grids.
        csv: the CSV file.
    """

    paper: str
    document: str
    scale: str
    rows: tuple[Row, ...]
    stamp: str
    notes: str
    provenance: dict[str, Any]
    images: tuple[Path, ...]
    csv: Path

    @property
    def command(self) -> str:
        """The command that reproduces the table."""
        name = self.document.removeprefix("table_")
        short = name if name[:1].isdigit() else self.document
        return f"make table T={self.paper}/{short} SCALE={self.scale}"


def scales(root: Path) -> list[str]:
    """Scales with committed tables, the one nearest to the papers first."""
    folder = root / TABLES
    names = [name for name in scale_names(root) if (folder / name).is_dir()]
    order = SCALE_ORDER[::-1]
    return sorted(names, key=lambda name: (order.index(name) if name in order else 99, name))


def read_tables(root: Path, scale: str) -> list[Table]:
    """Read all documents of a scale, in the order of their file names.

    Raises:
        UserError: a damaged CSV or provenance file.
    """
    paths = sorted((root / TABLES / scale).glob("*/*.csv"))
    return [_table(root, path) for path in paths if path.stem not in DERIVED]


def _table(root: Path, path: Path) -> Table:
    text = path.with_suffix(".md")
    lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
    last = max((i for i, line in enumerate(lines) if line.startswith("|")), default=len(lines))
    provenance = path.with_suffix(".provenance.json")
    paper, scale = path.parent.name, path.parent.parent.name
    named = [path.with_suffix(".png"), *path.parent.glob(f"{path.stem}_images*.png")]
    return Table(
        paper=paper,
        document=path.stem,
        scale=scale,
        rows=tuple(_checked(row, where) for where, row in read_csv(root, path, NUMBERS + TEXTS)),
        stamp=lines[0].strip("*") if lines else "",
        notes="\n".join(lines[last + 1 :]).strip(),
        provenance=read_json(provenance) if provenance.is_file() else {},
        images=tuple(sorted(image for image in named if image.is_file())),
        csv=path,
    )


def read_claims(root: Path, scale: str) -> dict[str, list[Row]]:
    """Read the claims of a scale by paper.

    Raises:
        UserError: a damaged CSV.
    """
    paths = sorted((root / TABLES / scale).glob("*/claims.csv"))
    return {p.parent.name: [row for _, row in read_csv(root, p, CLAIM_COLUMNS)] for p in paths}


def read_ranks(root: Path, scale: str) -> dict[str, list[Row]]:
    """Read the ranked defences of a scale by data set, such as ``mnist (digits in its place)``.

    Raises:
        UserError: a damaged CSV.
    """
    ranked: dict[str, list[Row]] = {}
    for path in sorted((root / TABLES / scale).glob("*/ranks.csv")):
        for _, row in read_csv(root, path, tuple(Ranked.__annotations__)):
            ranked.setdefault(dataset_text(row["dataset"], row["stand_in"]), []).append(row)
    return ranked


def read_csv(root: Path, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield the place (file and line) and the values of each line.

    Raises:
        UserError: a column is missing, a line has too few or too many values, or the file is not
            UTF-8 text.
    """
    shown = str(path.relative_to(root))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise _damaged(shown, f"has no column {missing[0]!r}")
            for row in reader:
                where = f"{shown}, line {reader.line_num}"
                if "" in row or None in row.values():
                    raise _damaged(where, f"needs {len(reader.fieldnames or ())} values")
                yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(shown, f"not readable as CSV ({error})") from None


def _checked(row: Row, where: str) -> Row:
    for name in NUMBERS:
        if row[name] and not _is_number(row[name]):
            raise _damaged(where, f"{name} is {row[name]!r}, but must be a number or empty")
    if row["verdict"] not in VERDICTS:
        raise _damaged(where, f"verdict is {row['verdict']!r}, but must be one of {VERDICTS}")
    return row


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _damaged(where: str, problem: str) -> UserError:
    return UserError(f"{where}: {problem}; restore the file with git checkout or make it again")
