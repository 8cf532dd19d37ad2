from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder, sha256
from purifiers.core.spec import ClassifierSpec, ComponentSpec
from purifiers.plan.cells import Cell, Document, Lowered, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.audit_chart import audit_rows
from purifiers.report.figures import _as_numbers, _curves
from purifiers.report.results import Results
from purifiers.report.write import write_document

Make = Callable[..., Any]


def write(document: Document, scale: ScaleInfo, root: Path, out: Path) -> set[str]:
    write_document(document, scale, root, out, {}.get)
    return {path.name for path in out.iterdir()}


def test_table_files(
    a_cell: Make,
    a_document: Make,
    score: Make,
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
) -> None:
    score("a", [1, 0])
    document = a_document(a_cell(scores=(("a",),), seeds=(0,)))
    names = write(document, smoke_scale, runs_root, tmp_path / "out")
    assert names == {f"table_3.{end}" for end in ("csv", "md", "tex", "provenance.json")}
    read = pd.read_csv(tmp_path / "out" / "table_3.csv")
    assert read["reproduced"].tolist() == [50.0]
    assert read["verdict"].tolist() == ["not comparable at this scale"]


def test_provenance(
    a_cell: Make,
    a_document: Make,
    score: Make,
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
) -> None:
    upstream = RunFolder(runs_root, "classifier", "cnn-1")
    early = {"git": "old", "torch": "2", "device": "cuda", "finished": "2026-01-01T00:00:00+00:00"}
    recipe = ComponentSpec(component="small_cnn", version=1, parameters={})
    spec = ClassifierSpec(data="mnist-1", train=8, classifier=recipe, training=recipe, seed=0)
    upstream.finish(spec, [], {}, 10.0, early)
    score("a", [1], classifier="cnn-1", finished="2026-01-03T00:00:00+00:00")
    own = ["purifiers/training/_base.py", "purifiers/methods/mine.py"]
    when = "2026-01-02T00:00:00+00:00"
    score("b", [1], classifier="cnn-1", finished=when, uncommitted=own)
    score("unrelated", [1], git="never")
    document = a_document(a_cell(scores=(("a", "b"), ("gone", "b")), seeds=(0, 1)))
    write(document, smoke_scale, runs_root, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "table_3.provenance.json").read_text()) == {
        "csv_sha256": sha256(tmp_path / "out" / "table_3.csv"),
        "runs": {"classifier": 1, "score": 2},
        "git": ["abc", "old"],
        "torch": ["2"],
        "device": ["cpu", "cuda"],
        "processor": ["p"],
        "uncommitted": ["purifiers/methods/mine.py", "purifiers/training/_base.py"],
        "finished": ["2026-01-01T00:00:00+00:00", "2026-01-03T00:00:00+00:00"],
        "elapsed_seconds": 13.0,
    }


@pytest.fixture
def a_figure(a_cell: Make, a_document: Make, score: Make) -> Callable[..., Document]:
    def make(*labels: str) -> Document:
        cells: list[Cell] = []
        for place, label in enumerate(labels):
            for row in ("madry", "aid"):
                run = score(f"{row}{place}", [1] * (5 - place) + [0] * (place + 1))
                cells.append(
                    a_cell(
                        **{"document": "figure_6", "table": "figure_6"},
                        **{"row": row, "row_label": row},
                        **{"column": f"c{place}", "column_label": label},
                        **{"published": None if row == "aid" else 50.0},
                        **{"scores": ((run,),), "seeds": (0,)},
                    )
                )
        return a_document(*cells, plot="curves")

    return make


@pytest.mark.parametrize("labels", [("1/255", "8/255", "16/255"), ("none", "jpeg", "aid")])
def test_figure_files(
    a_figure: Callable[..., Document],
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
    labels: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    document = a_figure(*labels)
    names = write(document, smoke_scale, runs_root, out)
    assert names == {f"figure_6.{end}" for end in ("csv", "png", "svg", "provenance.json")}
    assert (out / "figure_6.png").read_bytes().startswith(b"\x89PNG")
    first = (out / "figure_6.svg").read_bytes()
    assert len(first) > 5000
    write(document, smoke_scale, runs_root, out)
    assert (out / "figure_6.svg").read_bytes() == first


def test_a_figure_without_values_has_no_picture(
    a_cell: Make, a_document: Make, runs_root: Path, tmp_path: Path, smoke_scale: ScaleInfo
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "figure_6.png").write_bytes(b"of an older run")
    cell = a_cell(document="figure_6", scores=(("gone",),), seeds=(0,))
    document = a_document(cell, plot="curves")
    names = write(document, smoke_scale, runs_root, out)
    assert names == {"figure_6.csv", "figure_6.provenance.json"}


def test_a_schematic_figure_has_no_cells(
    a_document: Make, runs_root: Path, tmp_path: Path, smoke_scale: ScaleInfo
) -> None:
    document = a_document(paper="idfr", document="figure_2", status="qualitative", plot="curves")
    names = write(document, smoke_scale, runs_root, tmp_path / "out")
    assert names == {"figure_2.csv", "figure_2.provenance.json"}


def test_axis_is_numeric_only_when_every_label_is_a_number() -> None:
    assert _as_numbers(["8/255", "0.5"]) == [8 / 255, 0.5]
    assert _as_numbers(["8/255", "off"]) is None


def test_audit(
    a_cell: Make,
    a_document: Make,
    score: Make,
    runs_root: Path,
    tmp_path: Path,
    smoke_scale: ScaleInfo,
) -> None:
    score("clean", [1, 1, 1, 1], attack=None)
    score("blind", [1, 1, 1, 0])
    score("adaptive", [1, 0, 0, 0])
    base = {
        "document": "audit",
        "table": "audit",
        "published": None,
        "seeds": (0,),
        "gradient": "bpda",
    }
    given = {"threat_model": "white_box", "column": "pgd_white_box"}
    document = a_document(
        a_cell(row="aid", row_label="AID", scores=(("clean",),), attack="none", **base),
        a_cell(row="aid", row_label="AID", scores=(("blind",),), **base),
        a_cell(row="aid", row_label="AID", scores=(("adaptive",),), **base, **given),
        a_cell(row="pd", row_label="PD", scores=(("blind",),), **base),
        a_cell(row="pd", row_label="PD", scores=(("gone",),), **base, **given),
        plot="audit",
    )
    out = tmp_path / "out"
    names = write(document, smoke_scale, runs_root, out)
    ends = ("csv", "md", "tex", "png", "svg", "provenance.json")
    assert names == {f"audit.{end}" for end in ends}
    frame = aggregate(document, smoke_scale, Results(runs_root, {}.get))
    written = pd.read_csv(out / "audit.csv")["reproduced"]
    assert written.equals(frame["reproduced"])
    (found,) = audit_rows(document, frame)["MNIST"]
    assert (found.label, found.oblivious, found.audit) == ("AID", 75.0, 25.0)


def test_curves_name_their_axis_and_each_line_once(a_cell: Make, a_document: Make) -> None:
    cells = [
        a_cell(block=block, column=column, column_label=column, published=None)
        for block in ("mnist", "svhn")
        for column in ("0", "0.5")
    ]
    told = {"reproduced": 50.0, "ci_low": 40.0, "ci_high": 60.0, "published": float("nan")}
    told |= {"block": ["mnist", "mnist", "svhn", "svhn"], "row": "madry", "suspicious": False}
    told |= {"column": ["0", "0.5"] * 2}
    picture = _curves(a_document(*cells, axis="lambda"), pd.DataFrame(told))
    assert [axes.get_xlabel() for axes in picture.axes] == ["lambda", "lambda"]
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Madry"]


def test_a_row_looks_the_same_in_all_panels(a_cell: Make, a_document: Make) -> None:
    """Twelve rows, of which the second panel has the last two."""
    rows = [f"row {k}" for k in range(12)]
    places = [("mnist", row) for row in rows] + [("svhn", row) for row in rows[-2:]]
    cells = [a_cell(block=block, row=row, row_label=row, published=None) for block, row in places]
    frame = pd.DataFrame(places, columns=["block", "row"]).assign(
        column="pgd", reproduced=50.0, ci_low=40.0, ci_high=60.0, published=float("nan")
    )
    picture = _curves(a_document(*cells), frame.assign(suspicious=False))
    looks = [
        {
            bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_marker())
            for bars in axes.containers
        }
        for axes in picture.axes
    ]
    assert len(set(looks[0].values())) == len({marker for _, marker in looks[0].values()}) == 12
    assert looks[1] == {row: looks[0][row] for row in rows[-2:]}
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == rows


def test_a_number_that_the_scale_lowered_is_drawn_where_it_ran(
    a_cell: Make, a_document: Make
) -> None:
    """Left: 1, 5 and 20 samples, at most 3. Right: 5 and 80 steps, at most 10, with 5 samples."""
    few = {1: (), 5: (Lowered("EOT samples", 5, 3),), 20: (Lowered("EOT samples", 20, 3),)}
    steps = {5: few[5], 80: (*few[5], Lowered("attack steps", 80, 10))}
    cells = [
        a_cell(
            **{"block": block, "column": str(n), "column_label": str(n), "lowered": lowered},
            **{"scores": ((f"{block}{lowered[-1].run if lowered else n}",),), "seeds": (0,)},
        )
        for block, columns in (("samples", few), ("steps", steps))
        for n, lowered in columns.items()
    ]
    frame = pd.DataFrame(
        {"block": [cell.block for cell in cells], "column": [cell.column for cell in cells]}
    ).assign(row="madry", reproduced=50.0, ci_low=40.0, ci_high=60.0, published=45.0)
    picture = _curves(a_document(*cells), frame.assign(suspicious=False))
    drawn = [axes.containers[0].lines[0].get_xdata() for axes in picture.axes]
    assert [x.tolist() for x in drawn] == [[1.0, 3.0], [5.0, 10.0]]
    published = [axes.lines[-2].get_xdata().tolist() for axes in picture.axes]
    assert published == [[1.0, 5.0, 20.0], [5.0, 80.0]]
