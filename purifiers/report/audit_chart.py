"""Draw the audit: accuracy under attacks on the classifier alone and under the whole audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from purifiers.plan.cells import Cell, Document
from purifiers.report.layout import WEAK, WEAK_HEADING
from purifiers.report.styles import COLOURS, MARKERS

AREAS = {"*": 100}
"""Area in square points of markers that look too small at the default of 34."""


@dataclass(frozen=True)
class AuditRow:
    """A row of the audit.

    Attributes:
        label: label of the row.
        base: label of the row with the same classifier alone, or the name of its training.
        purifier: the label without the base; ``""`` for the classifier alone.
        oblivious: lowest accuracy under attacks on the classifier alone, in percent.
        audit: lowest accuracy under all attacks, in percent; at most ``oblivious``.
        weak: whether an attack shows signs of weakness.
    """

    label: str
    base: str
    purifier: str
    oblivious: float
    audit: float
    weak: bool


def draw_audit(document: Document, frame: pd.DataFrame) -> Figure | None:
    """Draw two panels per block; None where no row has both accuracies.

    Each classifier has a colour, each purifier a marker; a classifier alone is a hollow circle. The
    upper panel plots audit accuracy over oblivious accuracy. The distance below the diagonal is
    what an attack gains by knowing the defence. A defence below the dotted line of its classifier
    is less robust than the classifier alone. The lower panel shows the same accuracies row by row.
    """
    panels = audit_rows(document, frame)
    if not panels:
        return None
    bases = list(dict.fromkeys(row.base for rows in panels.values() for row in rows))
    purifiers = [row.purifier for rows in panels.values() for row in rows if row.purifier]
    colours = {base: COLOURS[k % len(COLOURS)] for k, base in enumerate(bases)}
    markers = {"": "o"} | {
        name: MARKERS[k % len(MARKERS)] for k, name in enumerate(dict.fromkeys(purifiers))
    }
    row_count = max(len(rows) for rows in panels.values())
    heights = (3.3, 0.5 + 0.2 * row_count)
    picture = Figure(figsize=(2.2 + 3.6 * len(panels), sum(heights) + 1.9), layout="constrained")
    above, below = picture.subplots(2, len(panels), squeeze=False, height_ratios=heights)
    shown: list[str] = []
    for (block, rows), points, dots in zip(panels.items(), above, below, strict=True):
        _points(points, rows, colours, markers)
        points.set_title(block, fontsize=9)
        _dots(dots, rows, colours)
        labels = [row.label for row in rows]
        dots.set_yticks(range(len(rows)), [] if labels == shown else labels, fontsize=8)
        shown = labels
    weak = any(row.weak for rows in panels.values() for row in rows)
    _legend(picture, colours, markers, weak)
    return picture


def audit_rows(document: Document, frame: pd.DataFrame) -> dict[str, list[AuditRow]]:
    """Select the rows with both oblivious and adaptive attacks.

    Returns:
        Rows by block label, in the document's order.
    """
    oblivious: dict[tuple[str, str], float] = {}
    lowest: dict[tuple[str, str], float] = {}
    first: dict[tuple[str, str], Cell] = {}
    adaptive: set[tuple[str, str]] = set()
    weak: set[tuple[str, str]] = set()
    for cell, value, suspicious in zip(
        document.cells, frame["reproduced"], frame["suspicious"], strict=True
    ):
        if not cell.attacked or pd.isna(value):
            continue
        row = cell.block_label, cell.row_label
        first.setdefault(row, cell)
        lowest[row] = min(float(value), lowest.get(row, 100.0))
        if cell.queried == "classifier":
            oblivious[row] = min(float(value), oblivious.get(row, 100.0))
        elif cell.queried == "defence":
            adaptive.add(row)
        if suspicious:
            weak.add(row)
    bare = {
        (block, _classifier(cell)): label
        for (block, label), cell in first.items()
        if not cell.methods
    }
    panels: dict[str, list[AuditRow]] = {}
    for row, cell in first.items():
        if row in oblivious and row in adaptive:
            block, label = row
            base = bare.get((block, _classifier(cell)), cell.training)
            purifier = label.removeprefix(f"{base} + ") if cell.methods else ""
            panels.setdefault(block, []).append(
                AuditRow(label, base, purifier, oblivious[row], lowest[row], row in weak)
            )
    return panels


def _classifier(cell: Cell) -> tuple[str, str, str]:
    return cell.dataset, cell.classifier, cell.training


def _limits(rows: Sequence[AuditRow]) -> tuple[float, float]:
    top = min(104.0, 1.12 * max(row.oblivious for row in rows) + 2)
    return -0.03 * top, top


def _points(
    axes: Axes, rows: Sequence[AuditRow], colours: dict[str, str], markers: dict[str, str]
) -> None:
    limits = _limits(rows)
    top = limits[1]
    axes.plot((0, top), (0, top), color="0.5", linewidth=1, zorder=1)
    axes.fill_between((0, top), (0, top), color="0.94", zorder=0)
    axes.text(
        0.97 * top, 0.03 * top, "weaker once it is known", color="0.45", fontsize=7, ha="right"
    )
    for row in rows:
        colour, bare = colours[row.base], not row.purifier
        if bare:
            axes.axhline(row.audit, color=colour, linestyle=":", linewidth=1, zorder=1)
        axes.scatter(
            *(row.oblivious, row.audit),
            marker=markers[row.purifier],
            s=60 if bare else AREAS.get(markers[row.purifier], 34),
            facecolor="none" if bare else colour,
            edgecolor=colour if bare else "white",
            linewidth=1.4 if bare else 0.6,
            zorder=2 if bare else 3,
        )
        if row.weak:
            axes.annotate(WEAK, (row.oblivious, row.audit), (4, 2), textcoords="offset points")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel("accuracy, the classifier alone attacked (percent)", fontsize=8)
    axes.set_ylabel("accuracy, the defence attacked, too (percent)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _dots(axes: Axes, rows: Sequence[AuditRow], colours: dict[str, str]) -> None:
    """Draw the two accuracies of each row, joined, with a dotted line at its classifier's."""
    alone = {row.base: row.audit for row in rows if not row.purifier}
    for y, row in enumerate(rows):
        colour = colours[row.base]
        axes.plot((row.audit, row.oblivious), (y, y), color=colour, alpha=0.5, zorder=1)
        axes.plot(row.oblivious, y, "o", color="white", mec=colour, ms=6, zorder=2)
        axes.plot(row.audit, y, "o", color=colour, ms=6, mec="white", mew=0.5, zorder=3)
        if row.weak:
            end = (max(row.audit, row.oblivious), y)
            axes.annotate(WEAK, end, (6, 0), textcoords="offset points", va="center", fontsize=8)
        if row.base in alone:
            line = (y - 0.5, y + 0.5)
            axes.plot([alone[row.base]] * 2, line, ":", color=colour, linewidth=1, zorder=1)
    axes.set(xlim=_limits(rows), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("percent; attacked: ○ classifier, ● defence, too", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)


LEGEND_INCHES = 2.9
"""Width of a column of the legend."""


def _legend(picture: Figure, colours: dict[str, str], markers: dict[str, str], weak: bool) -> None:
    grey = {"color": "0.35", "linestyle": "none", "markersize": 6}
    handles = [Line2D([], [], color=colour, label=base, lw=4) for base, colour in colours.items()]
    handles += [
        Line2D([], [], marker=marker, label=name, **grey)  # type: ignore[arg-type]
        for name, marker in markers.items()
        if name
    ]
    handles += [
        Line2D([], [], marker="o", mfc="none", label="the classifier alone", **grey),  # type: ignore[arg-type]
        Line2D([], [], color="0.35", linestyle=":", label="its accuracy in the audit"),
    ]
    title = f"{WEAK} {WEAK_HEADING.lower()}" if weak else None
    picture.legend(
        handles=handles,
        title=title,
        fontsize=7,
        title_fontsize=7,
        loc="outside lower center",
        ncols=max(1, min(3, int(picture.get_figwidth() / LEGEND_INCHES))),
    )
