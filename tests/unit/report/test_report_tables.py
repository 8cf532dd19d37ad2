from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from workspace import ROOT

from purifiers.plan.cells import Cell, Document, Flag, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.compare import VERDICTS
from purifiers.report.latex import LONG, PACKAGES, latex_table, latex_text, tex
from purifiers.report.layout import places, weak_attack_notes
from purifiers.report.results import Results
from purifiers.report.tables import csv_text, markdown_text

Make = Callable[..., Any]


@pytest.fixture
def document(a_cell: Make, a_document: Make, score: Make) -> Document:
    score("a", [1] * 60 + [0] * 40)
    score("b", [1] * 20 + [0] * 80)
    run = {"scores": (("a",),), "seeds": (0,)}
    pd_row = {"row": "pd", "row_label": "PD_1 & 50%"}
    cells = [
        a_cell(column="clean", column_label="Clean", published=60.5, **run),
        a_cell(column="pgd", scores=(("b",),), seeds=(0,)),
        a_cell(column="clean", column_label="Clean", published=None, **pd_row, **run),
        a_cell(state="quoted", published=38.17, **pd_row),
        a_cell(
            block="svhn",
            block_label="SVHN|x",
            state="not implemented",
            reason="no pd here",
            flags=(Flag("note", "odd"),),
        ),
    ]
    return a_document(*cells, notes=("OCR: the header_row is shifted",), title="A_B & 100%")


@pytest.fixture
def frame(document: Document, runs_root: Path, paper_scale: ScaleInfo) -> pd.DataFrame:
    return aggregate(document, paper_scale, Results(runs_root, {}.get))


def test_csv_is_tidy(frame: pd.DataFrame) -> None:
    lines = csv_text(frame).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("paper,document,table,block,row,column,dataset,")
    assert "60.5,60.0,60,100,100," in lines[1]
    assert frame["verdict"].isin(VERDICTS).all()


def test_markdown(document: Document, frame: pd.DataFrame, paper_scale: ScaleInfo) -> None:
    lines = markdown_text(document, frame, paper_scale).splitlines()
    assert lines[0] == (
        "**Scale paper (the papers' own settings); no stand-in data; n = 100 images; seeds: 1.**"
    )
    assert "# Table 3. A\\_B & 100%" in lines
    assert "|  | Clean | PGD |" in lines
    assert "|:--|--:|--:|" in lines
    assert "| Madry | 60.5 ≈ 60.0 ±9.4 | 60 ≠ 20.0 ±7.8 |" in lines
    assert "| PD\\_1 & 50% | · / 60.0 ±9.4 | 38.17 q |" in lines
    assert "## SVHN\\|x" in lines
    assert "| Madry | 60 / n.i. |" in lines
    assert "- OCR: the header\\_row is shifted" in lines
    assert "- SVHN|x: not implemented: no pd here".replace("|", "\\|") in lines
    assert "- SVHN\\|x: odd" in lines
    counts = "1 match, 1 differs, 1 no published value, 1 not implemented, 1 quoted"
    assert f"Table 3, section 4.2. Verdicts: {counts}." in lines


def test_markdown_tables_are_rectangular(
    document: Document, frame: pd.DataFrame, paper_scale: ScaleInfo
) -> None:
    widths: list[set[int]] = [set()]
    for line in markdown_text(document, frame, paper_scale).splitlines():
        if line.startswith("|"):
            widths[-1].add(line.replace("\\|", "").count("|"))
        elif widths[-1]:
            widths.append(set())
    assert [len(found) for found in widths] == [1, 1, 0]


def test_latex(document: Document, frame: pd.DataFrame, paper_scale: ScaleInfo) -> None:
    text = latex_text(document, frame, paper_scale)
    assert text.startswith("% Scale paper (the papers' own settings); no stand-in data;")
    assert r"\caption{A\_B \& 100\% (MNIST). Table 3, section 4.2. Scale paper" in text
    assert r"\label{aid:table_3:svhn}" in text
    assert r"PD\_1 \& 50\% & $\cdot$ / 60.0 $\pm$9.4 & 38.17 q \\" in text
    assert r"Madry & 60.5 $\approx$ 60.0 $\pm$9.4 & 60 $\neq$ 20.0 $\pm$7.8 \\" in text
    assert r"\begin{tabular}{@{}lrr@{}}" in text
    assert text.count("Each cell: ") == text.count("Verdicts: ") == 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.isascii()


WIDE = [
    ["", *(f"Column {k}" for k in range(18))],
    *([f"Row {r}", *["83.11 / 85.5 ±4.3"] * 18] for r in "ab"),
]


def test_a_wide_latex_table_with_few_rows_is_turned() -> None:
    text = "\n".join(latex_table(WIDE, "Caption. More.", "name"))
    assert text.count(r"\begin{tabular}{@{}lrr@{}}") == 1
    assert r"Column 17 & 83.11 / 85.5 $\pm$4.3 & 83.11 / 85.5 $\pm$4.3 \\" in text


def test_a_wide_latex_table_is_split_by_columns() -> None:
    grid = [*WIDE, *([f"Row {k}", *["83.11 / 85.5 ±4.3"] * 18] for k in range(20))]
    text = "\n".join(latex_table(grid, "Caption. More.", "name"))
    parts = text.count(r"\begin{table}")
    assert parts == text.count(r"\caption{") == 6
    assert text.count("Caption, continued.") == parts - 1 and "In 6 parts." in text
    assert all(text.count(f"Row {k} &") == parts for k in range(20))
    assert all(text.count(f"Column {k} ") + text.count(f"Column {k}\n") >= 1 for k in range(18))


def test_a_long_latex_table_breaks_over_pages() -> None:
    grid = [["", "Value"], *([f"Row {k}", "1"] for k in range(LONG + 1))]
    text = "\n".join(latex_table(grid, "Caption.", "name"))
    assert r"\begin{longtable}" in text and r"\endhead" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX")
def test_tex_makes_pages_without_overfull_boxes(tmp_path: Path) -> None:
    """Every committed table compiles, and no box is more than 5 points too wide or high."""
    tables = sorted((ROOT / "results" / "tables").glob("*/*/*.tex"))
    assert len(tables) > 50
    packages = "".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
    begin = rf"\documentclass{{article}}{packages}\begin{{document}}"
    for path in tables:
        (tmp_path / "t.tex").write_text(f"{begin}\n{path.read_text()}\n\\end{{document}}\n")
        command = ["pdflatex", "-interaction=nonstopmode", "t.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        log = (tmp_path / "t.log").read_text(errors="replace")
        assert done.returncode == 0, f"{path}: {re.findall('^! .*', log, re.MULTILINE)}"
        overfull = [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log)]
        assert max(overfull, default=0.0) <= 5 and "Float too large" not in log, path


def test_tex_escapes() -> None:
    assert tex("a\\b{c}~^#$") == (r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}\#\$")


def test_stand_ins_are_stamped(
    a_cell: Make, a_document: Make, score: Make, runs_root: Path, smoke_scale: ScaleInfo
) -> None:
    score("d", [1, 0])
    given = {"used_dataset": "digits", "scores": (("d",),), "seeds": (0,)}
    document = a_document(a_cell(dataset="svhn", **given), a_cell(dataset="cifar10", **given))
    frame = aggregate(document, smoke_scale, Results(runs_root, {}.get))
    text = markdown_text(document, frame, smoke_scale)
    assert text.startswith(
        "**Scale smoke (minutes); stand-in data: digits for svhn, cifar10; "
        "reduced sizes and budgets; n = 2 images; seeds: 1.**\n"
    )
    assert "- Digits stand in for every data set." in text


def test_small_numbers_keep_their_digits() -> None:
    """A time of half a millisecond is no 0.0005."""
    frame = pd.DataFrame({"x": [51.123456, 0.00045321, 8 / 255, float("nan"), 0.0], "n": range(5)})
    assert csv_text(frame) == "x,n\n51.1235,0\n0.0004532,1\n0.03137,2\n,3\n0.0,4\n"


def test_a_seed_that_failed_is_told_beside_those_that_did_not(
    a_cell: Make, a_document: Make, score: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    score("a", [1, 1])
    document = a_document(a_cell(scores=(("a",), ("b",)), seeds=(0, 1)))
    runs = Results(runs_root, {"b": "attack b: out of memory"}.get)
    text = markdown_text(document, aggregate(document, paper_scale, runs), paper_scale)
    assert "attack b: out of memory" in text


def test_nothing_reproduced(
    a_cell: Make, a_document: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    document = a_document(a_cell(scores=(("gone",),), seeds=(0,)))
    frame = aggregate(document, paper_scale, Results(runs_root, {}.get))
    text = markdown_text(document, frame, paper_scale)
    assert "nothing reproduced yet" in text.splitlines()[0]
    assert "| Madry | 60 / – |" in text


def test_without_any_published_value_only_the_reproduced_one_is_shown(
    a_cell: Make, a_document: Make, score: Make, runs_root: Path, smoke_scale: ScaleInfo
) -> None:
    score("d", [1, 0])
    document = a_document(a_cell(published=None, scores=(("d",),), seeds=(0,)))
    frame = aggregate(document, smoke_scale, Results(runs_root, {}.get))
    assert "| Madry | 50.0 ±" in markdown_text(document, frame, smoke_scale)
    assert frame["verdict"][0] == "not comparable at this scale"


def test_a_configuration_shows_what_the_paper_says(
    a_cell: Make, a_document: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    told = {"state": "configuration", "published": None}
    cells = [
        a_cell(state="configuration", published=200.0),
        a_cell(**told, column="activation", flags=(Flag("words", "ReLU"),)),
    ]
    cells.append(a_cell(**told, column="output"))
    document = a_document(*cells, status="configuration")
    frame = aggregate(document, paper_scale, Results(runs_root, {}.get))
    text = markdown_text(document, frame, paper_scale)
    assert text.splitlines()[0].endswith("configuration: nothing to run.**")
    assert "| Madry | 200 | ReLU | · |" in text
    assert "Verdicts" not in text + latex_text(document, frame, paper_scale)


def test_doubtful_published_numbers_are_marked_and_told(
    a_cell: Make, a_document: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    cells = [
        a_cell(),
        a_cell(column="clean", column_label="Clean", flags=(Flag("doubt", "too [high]"),)),
    ]
    document = a_document(*cells)
    frame = aggregate(document, paper_scale, Results(runs_root, {}.get))
    assert list(frame["flags"].str.startswith("doubtful: too [high]")) == [False, True]
    text = markdown_text(document, frame, paper_scale)
    assert "| Madry | 60 / – | 60† / – |" in text
    assert "- † Madry / Clean: too \\[high\\]\n" in text
    assert "flagged" not in text
    assert r"60$^\dagger$ /" in latex_text(document, frame, paper_scale)


def test_equal_signs_share_a_line(a_cell: Make, a_document: Make) -> None:
    labels = ("PGD", "MIM", "DF")
    cells = [a_cell(column=label, column_label=label) for label in labels]
    told = {"reproduced": 50.0, "warnings": ["zero gradient", "", "zero gradient"]}
    told["suspicious"] = [True, False, True]
    notes = weak_attack_notes(a_document(*cells), pd.DataFrame(told))
    assert notes == [
        "Madry / PGD; Madry / DF: zero gradient",
        "No sign found in 1 other attacked cell.",
    ]


def test_places_name_groups_of_cells(a_cell: Make, a_document: Make) -> None:
    def cells(block: str, rows: str, columns: str) -> list[Cell]:
        return [
            a_cell(
                **{"block": block, "row": row, "column": column},
                **{"block_label": block.upper(), "row_label": row.upper()},
                column_label=column.upper(),
            )
            for row in rows
            for column in columns
        ]

    document = a_document(*cells("m", "ab", "xyz"), *cells("s", "abc", "xyz"))
    for group, text in {
        (("m", "ab", "xyz"), ("s", "abc", "xyz")): "all cells",
        (("m", "ab", "xyz"),): "M",
        (("m", "a", "x"),): "M / A / X",
        (("m", "a", "xyz"), ("s", "a", "xyz")): "A",
        (("m", "ab", "x"), ("s", "abc", "x")): "X",
        (("m", "ab", "x"), ("s", "ab", "x")): "M / X; S / A, B / X",
        (("s", "a", "xy"), ("s", "b", "z"), ("s", "c", "z")): "S / A / X, Y; S / B, C / Z",
    }.items():
        assert places(document, [cell for part in group for cell in cells(*part)]) == text
    many = [dataclasses.replace(cell, row_label=90 * cell.row) for cell in document.cells]
    assert places(a_document(*many), many[6:12]).startswith("S / aaa")
    assert places(a_document(*many), many[:3] + many[6:12]) == "9 cells (column flags of the CSV)"


def test_flags_name_their_cells(
    document: Document, score: Make, runs_root: Path, paper_scale: ScaleInfo
) -> None:
    """A text of two cells is one line."""
    spoilt = [
        dataclasses.replace(cell, flags=(*cell.flags, Flag("remark", "see: text")))
        if cell.row == "madry" and cell.block == "mnist"
        else cell
        for cell in document.cells
    ]
    flagged = dataclasses.replace(document, cells=tuple(spoilt))
    frame = aggregate(flagged, paper_scale, Results(runs_root, {}.get))
    lines = markdown_text(flagged, frame, paper_scale).splitlines()
    assert [line for line in lines if "see: text" in line] == ["- MNIST / Madry: see: text"]


def test_columns_of_the_same_runs_are_named(
    a_cell: Make, a_document: Make, smoke_scale: ScaleInfo, paper_scale: ScaleInfo, runs_root: Path
) -> None:
    """Of the scale's limits only whole columns: an undefended row has one attack for two."""
    runs = {
        "bare": {"pgd_20": "b", "pgd_1000": "b", "adaptive": "b"},
        "atop": {"pgd_20": "a", "pgd_1000": "a", "adaptive": "x"},
    }
    document = a_document(
        *(
            a_cell(row=row, column=column, column_label=column, scores=((run,),), seeds=(0,))
            for row, columns in runs.items()
            for column, run in columns.items()
        )
    )

    def noted(document: Document, scale: ScaleInfo) -> list[str]:
        frame = aggregate(document, scale, Results(runs_root, {}.get))
        lines = markdown_text(document, frame, scale).splitlines()
        return [line for line in lines if "same runs" in line]

    assert noted(document, smoke_scale) == ["- pgd\\_20, pgd\\_1000: the same runs at this scale"]
    assert noted(document, paper_scale) == []
    rows = [dataclasses.replace(cell, row=cell.column, column=cell.row, row_label=cell.column_label,
                                column_label=cell.row) for cell in document.cells]  # fmt: skip
    (line,) = noted(a_document(*rows), smoke_scale)
    assert line == "- pgd\\_20, pgd\\_1000: the same runs at this scale"
