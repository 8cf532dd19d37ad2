"""A report keeps earlier values whose runs are not here, and only if the same runs gave them."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.errors import UserError
from purifiers.plan.cells import Document, Flag, ScaleInfo
from purifiers.report.claims import write_claims
from purifiers.report.write import write_document

Make = Callable[..., Any]
NOTE = Flag("note", "a note; with a semicolon")
EXACT = Flag("data", "mnist: 2 of 4 images")
FAILED = Flag("data", "mnist-cnn-fast_at-s0-6c5bf186: catastrophic overfitting: 8 %")


@pytest.fixture
def document(a_cell: Make, a_document: Make) -> Document:
    """Two cells; the first has two seeds."""
    first = a_cell(scores=(("a",), ("b",)), seeds=(0, 1), flags=(NOTE,))
    return a_document(first, a_cell(column="fgsm", scores=(("c",),), seeds=(0,)))


@pytest.fixture
def write(runs_root: Path, tmp_path: Path, smoke_scale: ScaleInfo) -> Callable[..., pd.DataFrame]:
    """Write the document and read its CSV."""

    def run(document: Document, failures: dict[str, str] | None = None) -> pd.DataFrame:
        write_document(document, smoke_scale, runs_root, tmp_path / "out", (failures or {}).get)
        return pd.read_csv(tmp_path / "out/table_3.csv", keep_default_na=False)

    return run


def forget(runs_root: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(runs_root / "score" / name)


def flagged(document: Document, *flags: Flag) -> Document:
    cells = (dataclasses.replace(cell, flags=(*cell.flags, *flags)) for cell in document.cells)
    return dataclasses.replace(document, cells=tuple(cells))


def test_a_table_without_its_runs_stays_byte_for_byte(document, score, write, runs_root, tmp_path):
    score("a", [1, 0], finished="2026-01-01T00:00:00+00:00")
    score("b", [1, 1]), score("c", [0, 0])
    write(flagged(document, EXACT, FAILED))
    files = sorted((tmp_path / "out").iterdir())
    before = {path: path.read_bytes() for path in files}
    forget(runs_root, "a", "b", "c")
    write(document)  # what the images are is read from runs too
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").iterdir())} == before


def test_a_report_by_name_removes_outdated_values(
    document, score, write, runs_root, tmp_path, smoke_scale
):
    score("a", [1, 0]), score("b", [1, 1]), score("c", [0, 0])
    write(document)
    forget(runs_root, "a", "b", "c")
    changed = dataclasses.replace(document.cells[1], scores=(("d",),))
    document = dataclasses.replace(document, cells=(document.cells[0], changed))
    out, left = tmp_path / "out", []
    for of_the_paper in (True, False):
        write_document(document, smoke_scale, runs_root, out, {}.get, only_if_run=of_the_paper)
        left.append(pd.read_csv(out / "table_3.csv")["reproduced"].count())
    assert left == [2, 1]


def test_new_values_join_the_earlier_ones(document, score, write, runs_root, tmp_path, capsys):
    score("a", [1, 0], finished="2026-01-01T00:00:00+00:00")
    score("b", [1, 1], finished="2026-01-02T00:00:00+00:00")
    write(document)
    forget(runs_root, "a", "b")
    score("c", [1, 1], git="new", finished="2026-02-01T00:00:00+00:00")
    for _ in range(2):  # a second report changes nothing
        table = write(document)
        assert table["reproduced"].astype(str).tolist() == ["75.0", "100.0"]
        assert table["seeds"].tolist() == [2, 1]
        provenance = json.loads((tmp_path / "out/table_3.provenance.json").read_text())
        assert provenance["git"] == ["abc", "new"] and provenance["runs"] == {"score": 3}
        assert [part["runs"] for part in provenance["reports"]] == [{"score": 2}, {"score": 1}]
        assert "1 values kept" in capsys.readouterr().out


def test_more_seeds_replace_fewer_and_never_the_reverse(document, score, write, runs_root):
    score("a", [1, 0]), score("b", [1, 1])
    write(document)
    forget(runs_root, "b")
    assert write(document)["seeds"][0] == 2
    score("b", [0, 0])
    table = write(document)
    assert table["seeds"][0] == 2 and table["n_correct"].astype(str)[0] == "1"


def test_values_of_other_runs_are_dropped(document, score, write, runs_root):
    score("a", [1, 0]), score("b", [1, 1])
    write(document)
    forget(runs_root, "a", "b")
    other = dataclasses.replace(document.cells[0], scores=(("a",), ("other",)))
    table = write(dataclasses.replace(document, cells=(other, document.cells[1])))
    assert table["reproduced"].tolist() == ["", ""] and table["verdict"][0] == "not run"


def test_a_corrected_published_value_is_compared_anew(document, score, write, runs_root):
    score("c", [1, 1])
    write(document)
    forget(runs_root, "c")
    cells = (document.cells[0], dataclasses.replace(document.cells[1], published=90.0))
    table = write(dataclasses.replace(document, cells=cells))
    assert table["deviation"].astype(str)[1] == "10.0"


def test_a_failure_is_not_hidden_by_an_earlier_value(document, score, write, runs_root):
    score("c", [1, 1])
    write(document)
    forget(runs_root, "c")
    assert write(document, {"c": "NaN in the loss"})["verdict"][1] == "failed"


def change(old: str, new: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def older(path: Path) -> None:
    """As written by a release without digests."""
    provenance = path.with_suffix(".provenance.json")
    content = json.loads(provenance.read_text())
    del content["csv_sha256"]
    provenance.write_text(json.dumps(content))


DAMAGES = {
    "digit": change("75.0", "15.0"),
    "dropped": change(",75.0", ","),
    "binary": lambda path: path.write_bytes(b"\xff"),
    "unknown": lambda path: path.with_suffix(".provenance.json").unlink(),
    "older": older,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_values_are_kept_from_an_undamaged_file_only(
    damage, document, score, write, runs_root, tmp_path
):
    score("a", [1, 0]), score("b", [1, 1]), score("c", [0, 0])
    write(document)
    path = tmp_path / "out/table_3.csv"
    before = path.read_bytes()
    DAMAGES[damage](path)
    write(document)  # all runs are here: nothing is kept
    assert path.read_bytes() == before
    forget(runs_root, "c")
    DAMAGES[damage](path)
    markdown = path.with_suffix(".md").read_bytes()
    with pytest.raises(UserError, match=r"table_3\.csv: its SHA-256 .* git checkout, or delete"):
        write(document)
    assert path.with_suffix(".md").read_bytes() == markdown


def test_a_claim_keeps_its_verdict(document, score, runs_root, tmp_path, smoke_scale):
    path = tmp_path / "claims.csv"

    def verdict(bound: int) -> str:
        cell = {"block": "mnist", "row": "madry", "column": "fgsm", "document": "table_3"}
        claim = {"id": "c", "text": "high", "decide": [{"at_least": bound, "of": cell}]}
        write_claims([claim], {"table_3": document}, smoke_scale, runs_root, path, {}.get)
        with path.open(newline="") as file:
            return next(csv.DictReader(file))["verdict"]

    score("c", [1] * 40)
    assert verdict(50) == "supported"
    forget(runs_root, "c")
    assert verdict(50) == "supported"
    change("supported", "contradicted")(path)
    with pytest.raises(UserError, match=r"claims\.csv: its SHA-256"):
        verdict(50)
    change("contradicted", "supported")(path)
    assert verdict(60) == "not run"  # another claim
