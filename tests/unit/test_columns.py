"""``docs/columns.md`` describes the CSV files: their columns, in order, and types that load."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from workspace import ROOT

from purifiers.core.artifacts import read_json, sha256
from purifiers.core.recorded_csv import DIGEST, provenance_path
from purifiers.report import claims
from purifiers.report.aggregate import COLUMNS
from purifiers.report.ranking import Ranked

TABLES = ROOT / "results" / "tables"


def described() -> dict[str, dict[str, str]]:
    """Per file name its columns with their types."""
    text = (ROOT / "docs" / "columns.md").read_text()
    sections = re.split(r"^## `\S*/(\S+)`$", text, flags=re.MULTILINE)[1:]
    pattern = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return {name: dict(pattern.findall(body)) for name, body in pairs}


def test_every_column_is_described_in_order() -> None:
    files = described()
    assert tuple(files["<document>.csv"]) == COLUMNS
    assert tuple(files["claims.csv"]) == tuple(claims.COLUMNS)
    assert tuple(files["ranks.csv"]) == (*Ranked.__annotations__, "scale")
    assert set(files) == {"<document>.csv", "claims.csv", "ranks.csv", "selection.csv"}


@pytest.mark.parametrize(
    "path", sorted(TABLES.glob("*/*/*.csv")), ids=lambda path: str(path.relative_to(TABLES))
)
def test_committed_files_load_with_the_documented_types(path: Path) -> None:
    files = described()
    types = files.get(path.name, files["<document>.csv"])
    frame = pd.read_csv(path, dtype=types)
    assert list(frame) == list(types)
    assert {name: str(frame[name].dtype) for name in frame} == types


def test_committed_files_are_those_whose_digests_are_committed() -> None:
    paths = [p for p in TABLES.glob("*/*/*.csv") if p.stem not in ("ranks", "selection")]
    assert paths
    assert [p for p in paths if read_json(provenance_path(p))[DIGEST] != sha256(p)] == []
