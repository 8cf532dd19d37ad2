"""Draw a document's values: curves for figures and sweeps, and the chart of the audit."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purifiers.core.artifacts import write_bytes
from purifiers.core.errors import UserError
from purifiers.core.numbers import fraction
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.audit_chart import draw_audit
from purifiers.report.certified import draw_certified
from purifiers.report.histograms import draw_histograms
from purifiers.report.layout import WEAK_HEADING, heading, stamp
from purifiers.report.means_chart import draw_means
from purifiers.report.ranking import Ranked
from purifiers.report.ranking_chart import draw_gains, draw_matrix
from purifiers.report.results import Results
from purifiers.report.selection import draw_selection
from purifiers.report.styles import row_styles
from purifiers.report.tsne import draw_maps

FORMATS = ("png", "svg")

FROM_ROWS = ("curves", "audit")
"""Kinds of ``plot`` that the rows of the CSV suffice for; the others read the runs."""


def write_picture(
    document: Document,
    frame: pd.DataFrame,
    results: Results,
    scale: ScaleInfo,
    out_dir: Path,
    derived: Sequence[Any] = (),
) -> None:
    """Write ``<out_dir>/<document>.png`` and ``.svg`` of a document with ``plot``.

    Args:
        derived: what a ``ranking`` or ``selection`` draws; see those modules.

    If nothing is reproduced, no picture is written and an older one is removed.
    """
    picture = None
    if frame["reproduced"].notna().any():
        match document.plot:
            case "curves":
                picture = _curves(document, frame)
            case "audit":
                picture = draw_audit(document, frame)
            case "histograms":
                picture = draw_histograms(document, frame, results)
            case "tsne":
                picture = draw_maps(document, results)
            case "certified":
                picture = draw_certified(document, results)
            case "ranking":
                picture = _ranking(document, frame, derived, scale, out_dir)
            case "means":
                picture = draw_means(document, results)
            case "selection":
                picture = draw_selection(document, derived)
    for kind in FORMATS:
        path = out_dir / f"{document.document}.{kind}"
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            save(picture, path, f"{heading(document)}\n{stamp(document, frame, scale)}")


def save(picture: Figure, path: Path, title: str) -> None:
    """Write a picture with a title; the same values give the same bytes."""
    width = int(picture.get_figwidth() * 14)
    lines = [piece for line in title.split("\n") for piece in textwrap.wrap(line, width)]
    picture.suptitle("\n".join(lines), fontsize=8)
    content = io.BytesIO()
    # a fixed salt and no date make the file reproducible
    with rc_context({"svg.hashsalt": "purifybench"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        picture.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_bytes(path, content.getvalue())


def _ranking(
    document: Document,
    frame: pd.DataFrame,
    ranked: Sequence[Ranked],
    scale: ScaleInfo,
    out_dir: Path,
) -> Figure | None:
    """Write the picture of all attacks, and draw the gains."""
    if not ranked:
        return None
    title = f"{document.title}: all attacks\n{stamp(document, frame, scale)}"
    save(draw_matrix(document, frame, ranked), out_dir / "attacks.png", title)
    return draw_gains(document, ranked)


def _curves(document: Document, frame: pd.DataFrame) -> Figure:
    """Draw one panel per block and one line per row; published values are dashed.

    A row has the same colour and marker in all panels. On a numeric axis a number that the scale
    lowered is drawn where it ran.
    """
    cells = pd.DataFrame({"cell": document.cells, **{name: frame[name] for name in frame}})
    names = list(dict.fromkeys(frame["block"]))
    styles = row_styles(cell.row_label for cell in document.cells)
    picture = Figure(figsize=(4.5 * len(names) + 0.5, 4.4), layout="constrained")
    for axes, name in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _panel(axes, cells[cells["block"] == name], styles)
        axes.set_xlabel(document.axis)
    handle_of: dict[str, Any] = {}
    for axes in picture.axes:
        handles, labels = axes.get_legend_handles_labels()
        handle_of.update(zip(labels, handles, strict=True))
    # below the panels, where it hides no line
    picture.legend(handle_of.values(), handle_of, loc="outside lower center", ncols=2, fontsize=7)
    return picture


def _panel(axes: Axes, block: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]]) -> None:
    first: Cell = block["cell"].iloc[0]
    labels = {cell.column: cell.column_label for cell in block["cell"]}
    numbers = _as_numbers(list(labels.values()))
    positions = dict(zip(labels, numbers or range(len(labels)), strict=True))
    block = block.assign(
        declared=block["column"].map(positions),
        identity=[cell.identity for cell in block["cell"]],
    )
    block["x"] = block["declared"]
    if numbers:
        block["x"] = _as_run(block["cell"], block["declared"])
    for row in dict.fromkeys(block["row"]):
        line = block[block["row"] == row]
        if line[["reproduced", "published"]].isna().all(axis=None):
            continue
        measured = line.drop_duplicates(["x", "identity"])
        half_widths = [
            (measured["reproduced"] - measured["ci_low"]).fillna(0.0),
            (measured["ci_high"] - measured["reproduced"]).fillna(0.0),
        ]
        label = line["cell"].iloc[0].row_label
        axes.errorbar(
            *(measured["x"], measured["reproduced"]),
            yerr=[side.clip(lower=0.0) for side in half_widths],
            capsize=2,
            label=label,
            **styles[label],
        )
        if line["published"].notna().any():
            axes.plot(line["declared"], line["published"], "--", alpha=0.7, **styles[label])
            axes.plot([], [], "--", label=f"{label}, paper", **styles[label])
    weak = block[block["suspicious"] & block["reproduced"].notna()]
    if not weak.empty:
        axes.plot(weak["x"], weak["reproduced"], "rx", ms=10, label=WEAK_HEADING.lower())
    if numbers is None:
        axes.set_xticks(list(positions.values()), list(labels.values()), rotation=45, ha="right")
        axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_title(first.block_label, fontsize=8)
    axes.set_ylabel(f"{first.metric.replace('_', ' ')} ({first.unit})")
    axes.grid(alpha=0.3)


def _as_run(cells: Iterable[Cell], declared: Iterable[float]) -> list[float]:
    """Positions on a numeric axis: the declared numbers, or what the scale's limits made of them.

    A limit is one of the axis if every number that it lowered is that of the cell's column.
    """
    pairs = list(zip(cells, declared, strict=True))
    lowered = [(entry, value) for cell, value in pairs for entry in cell.lowered]
    others = {entry.what for entry, value in lowered if entry.declared != value}
    return [
        next((float(low.run) for low in cell.lowered if low.what not in others), value)
        for cell, value in pairs
    ]


def _as_numbers(labels: Sequence[str]) -> list[float] | None:
    """Convert labels such as ``"8/255"`` to numbers; None if a label is not a number."""
    try:
        return [fraction(label) for label in labels]
    except UserError:
        return None
