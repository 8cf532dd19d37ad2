"""Draw mean accuracies over several attacks, and by how much the best row exceeds the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purifiers.plan.cells import Cell, Document
from purifiers.report.bootstrap import CONFIDENCE, Difference, paired_difference
from purifiers.report.results import Results
from purifiers.report.shared_images import SeedRuns, on_shared_images
from purifiers.report.styles import row_styles

SIDE_BY_SIDE = 2
"""Blocks next to each other."""


@dataclass(frozen=True)
class MeanRow:
    """A row of one block, in percent.

    Attributes:
        label: label of the row.
        mean: mean accuracy, with its interval over images and seeds.
        margin: by how much the best row's mean exceeds it, with the paired interval over the
            images and seeds of both; None for the best row, and where the two share none.
    """

    label: str
    mean: Difference
    margin: Difference | None


def draw_means(document: Document, results: Results) -> Figure | None:
    """Draw two panels per block: the means, and the margins of the best row over the others.

    Args:
        document: a document whose means over cells are drawn, one per row.
        results: the finished runs.
    """
    blocks = {block: rows for block, rows in mean_rows(document, results).items() if rows}
    if not blocks:
        return None
    styles = row_styles(cell.row_label for cell in document.cells)
    lines = -(-len(blocks) // SIDE_BY_SIDE)
    most = max(map(len, blocks.values()))
    size = (6.5 * min(len(blocks), SIDE_BY_SIDE), (1.1 + 0.2 * most) * lines + 0.5)
    picture = Figure(figsize=size, layout="constrained")
    parts = np.ravel(picture.subfigures(lines, min(len(blocks), SIDE_BY_SIDE), squeeze=False))
    for part, (block, rows) in zip(parts, blocks.items(), strict=False):
        left, right = part.subplots(1, 2, sharey=True)
        for y, row in enumerate(rows):
            _dot(left, y, row.mean, styles[row.label])
            if row.margin:
                _dot(right, y, row.margin, styles[row.label])
        left.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=7)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlabel("mean accuracy (percent)", fontsize=7)
        right.set_xlabel("points below the best row", fontsize=7)
        right.axvline(0, color="0.5", linewidth=1)
        part.suptitle(f"{block}\n{_summary(rows)}", fontsize=8)
    return picture


def mean_rows(document: Document, results: Results) -> dict[str, list[MeanRow]]:
    """Means and margins of the rows with finished runs, by block label, in the document's order."""
    of_block: dict[str, list[tuple[Cell, SeedRuns]]] = {}
    for cell in document.cells:
        if cell.mean and cell.metric == "accuracy" and (seeds := results.find(cell).seeds):
            of_block.setdefault(cell.block_label, []).append((cell, seeds))
    return {block: _rows(entries) for block, entries in of_block.items()}


def _rows(entries: Sequence[tuple[Cell, SeedRuns]]) -> list[MeanRow]:
    means = [_mean(cell, runs) for cell, runs in entries]
    best = max(range(len(means)), key=lambda k: means[k].estimate)
    return [
        MeanRow(cell.row_label, mean, None if k == best else _margin(entries[best], entries[k]))
        for k, ((cell, _), mean) in enumerate(zip(entries, means, strict=True))
    ]


def _mean(cell: Cell, runs: SeedRuns) -> Difference:
    (correct,), images = on_shared_images([cell], [runs], sorted(runs))
    return paired_difference(
        [100 * seed for seed in correct], [np.zeros((1, len(images))) for _ in correct]
    )


def _margin(best: tuple[Cell, SeedRuns], other: tuple[Cell, SeedRuns]) -> Difference | None:
    (cell, runs), (other_cell, other_runs) = best, other
    seeds = sorted(runs.keys() & other_runs.keys())
    if not seeds:
        return None
    sides, images = on_shared_images([cell, other_cell], [runs, other_runs], seeds)
    if images.empty:
        return None
    return paired_difference(*([100 * seed for seed in side] for side in sides))


def _dot(axes: Axes, y: int, value: Difference, style: Mapping[str, Any]) -> None:
    ends = [[value.estimate - value.low], [value.high - value.estimate]]
    axes.errorbar([value.estimate], [y], xerr=np.maximum(ends, 0.0), ms=5, capsize=2, **style)
    axes.annotate(
        f"{value.estimate:.1f}",
        (value.high, y),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=6,
    )
    axes.margins(x=0.15)  # room for the numbers
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize=7)


def _summary(rows: Sequence[MeanRow]) -> str:
    """The best row and its margin over the next best."""
    best = max(rows, key=lambda row: row.mean.estimate)
    others = [row for row in rows if row.margin]
    if not others:
        return f"best: {best.label}"
    second = max(others, key=lambda row: row.mean.estimate)
    margin = second.margin
    assert margin
    interval = f"{CONFIDENCE:.0%}: {margin.low:+.1f} to {margin.high:+.1f}"
    return f"best: {best.label}, {margin.estimate:+.1f} points over {second.label} ({interval})"
