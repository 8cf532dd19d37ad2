"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS / "FAULTS.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]


def test_the_table_is_whole() -> None:
    assert len(ROWS) >= 40 and all(len(row) == 4 and all(row) for row in ROWS)
    faults = [row[0] for row in ROWS]
    assert len(faults) == len(set(faults))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_fault_has_its_test(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[3])
    assert named and len(named) == row[3].count("::")
    for file, test in named:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file} has no {test}"
