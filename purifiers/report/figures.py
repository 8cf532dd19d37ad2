"""Pictures: curves for a paper's figures, paired dots for the audit."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purifiers.core.artifacts import write_bytes
from purifiers.core.errors import UserError
from purifiers.core.numbers import fraction
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.layout import WEAK, WEAK_HEADING, heading, stamp, suspicious

FORMATS = ("png", "svg")
Pair = tuple[str, float, float]
"""Label, accuracy when the classifier alone is attacked, and when the whole defence is."""


def write_picture(document: Document, frame: pd.DataFrame, scale: ScaleInfo, out_dir: Path) -> None:
    """Write ``<out_dir>/<document>.png`` and ``.svg`` for a figure or the audit.

    Where nothing is reproduced there is no picture, and an older one is removed.
    """
    if document.document == "audit":
        picture = _audit(document, frame)
    elif document.document.startswith("figure_") and frame["reproduced"].notna().any():
        picture = _curves(document, frame)
    else:
        picture = None
    for kind in FORMATS:
        path = out_dir / f"{document.document}.{kind}"
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            _save(picture, path, f"{heading(document)}\n{stamp(document, frame, scale)}")


def _save(picture: Figure, path: Path, title: str) -> None:
    width = int(picture.get_figwidth() * 14)
    lines = [piece for line in title.split("\n") for piece in textwrap.wrap(line, width)]
    picture.suptitle("\n".join(lines), fontsize=8)
    content = io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with rc_context({"svg.hashsalt": "purifybench"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        picture.savefig(content, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_bytes(path, content.getvalue())


def _curves(document: Document, frame: pd.DataFrame) -> Figure:
    """A panel per block, a line per row over the columns; published values are dashed."""
    cells = pd.DataFrame({"cell": document.cells, **{name: frame[name] for name in frame}})
    names = list(dict.fromkeys(frame["block"]))
    picture = Figure(figsize=(4.5 * len(names) + 0.5, 3.8), layout="constrained")
    for axes, name in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _panel(axes, cells[cells["block"] == name])
    return picture


def _panel(axes: Axes, block: pd.DataFrame) -> None:
    first: Cell = block["cell"].iloc[0]
    labels = {cell.column: cell.column_label for cell in block["cell"]}
    numbers = _as_numbers(list(labels.values()))
    places = dict(zip(labels, numbers or range(len(labels)), strict=True))
    for row in dict.fromkeys(block["row"]):
        line = block[block["row"] == row]
        x = line["column"].map(places)
        half_widths = [
            (line["reproduced"] - line["ci_low"]).fillna(0.0),
            (line["ci_high"] - line["reproduced"]).fillna(0.0),
        ]
        drawn = axes.errorbar(
            *(x, line["reproduced"]),
            yerr=[side.clip(lower=0.0) for side in half_widths],
            marker="o",
            capsize=2,
            label=line["cell"].iloc[0].row_label,
        )
        if line["published"].notna().any():
            colour = drawn.lines[0].get_color()
            axes.plot(x, line["published"], "--", color=colour, alpha=0.7)
            axes.plot([], [], "--", color=colour, label=f"{line['cell'].iloc[0].row_label}, paper")
    weak = block[block["warnings"].map(suspicious) & block["reproduced"].notna()]
    if not weak.empty:
        x = weak["column"].map(places)
        axes.plot(x, weak["reproduced"], "rx", ms=10, label=WEAK_HEADING.lower())
    if numbers is None:
        axes.set_xticks(list(places.values()), list(labels.values()), rotation=45, ha="right")
        axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_title(first.block_label, fontsize=8)
    axes.set_ylabel(f"{first.metric.replace('_', ' ')} ({first.unit})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _as_numbers(labels: Sequence[str]) -> list[float] | None:
    """The labels as numbers (``"8/255"`` is one too), or None where one is not."""
    try:
        return [fraction(label) for label in labels]
    except UserError:
        return None


def _audit(document: Document, frame: pd.DataFrame) -> Figure | None:
    """A panel per block, a line per defence: accuracy when the classifier alone is attacked (the
    paper's protocol) joined to that when the whole defence is."""
    panels = _audit_pairs(document, frame)
    if not panels:
        return None
    most = max(len(pairs) for pairs in panels.values())
    picture = Figure(figsize=(3.0 + 2.6 * len(panels), 1.6 + 0.25 * most), layout="constrained")
    every_axes = picture.subplots(1, len(panels), squeeze=False)[0]
    shown: tuple[str, ...] = ()
    for axes, (block, pairs) in zip(every_axes, panels.items(), strict=True):
        labels, protocol, adaptive = zip(*pairs, strict=True)
        places = range(len(pairs))
        axes.hlines(places, adaptive, protocol, color="0.7", zorder=1)
        axes.scatter(protocol, places, label="classifier attacked (oblivious)", zorder=2)
        axes.scatter(adaptive, places, marker="D", s=14, label="whole defence attacked", zorder=3)
        axes.set_yticks(places, [] if labels == shown else labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(-4, 104)
        axes.set_xlabel("accuracy (percent)")
        axes.set_title(block, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        shown = labels
    handles, names = every_axes[0].get_legend_handles_labels()
    marked = any(label.endswith(WEAK) for pairs in panels.values() for label, _, _ in pairs)
    title = f"{WEAK} {WEAK_HEADING.lower()}" if marked else None
    picture.legend(
        handles,
        names,
        title=title,
        fontsize=7,
        title_fontsize=7,
        loc="outside lower center",
        ncols=2,
    )
    return picture


def _side(cell: Cell) -> str:
    """Which of the picture's two protocols an attack belongs to; ``""`` for attacks that are made
    on another model and carried over."""
    asks_defence = cell.threat_model == "black_box" and not cell.source
    if cell.threat_model == "white_box" or asks_defence:
        return "adaptive"
    return "protocol" if cell.threat_model in ("", "oblivious") else ""


def _audit_pairs(document: Document, frame: pd.DataFrame) -> dict[str, list[Pair]]:
    """Per block label the rows of which both sides are reproduced, in the document's order; the
    lowest accuracy of each side counts, and a row with signs of a weak attack is marked."""
    sides: dict[tuple[str, str], dict[str, float]] = {}
    weak: set[tuple[str, str]] = set()
    for cell, value, told in zip(
        document.cells, frame["reproduced"], frame["warnings"], strict=True
    ):
        combined = cell.attack.startswith("worst of")  # belongs to neither side
        if not combined and cell.attack != "none" and not pd.isna(value):
            side = _side(cell)
            if not side:
                continue
            found = sides.setdefault((cell.block_label, cell.row_label), {})
            found[side] = min(float(value), found.get(side, 100.0))
            if suspicious(told):
                weak.add((cell.block_label, cell.row_label))
    panels: dict[str, list[Pair]] = {}
    for (block, row), found in sides.items():
        if len(found) == 2:
            label = f"{row} {WEAK}" if (block, row) in weak else row
            panels.setdefault(block, []).append((label, found["protocol"], found["adaptive"]))
    return panels
