"""Draw a ranking: the gain of each purifier over its base, and all attacks on all defences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from purifiers.plan.cells import Document
from purifiers.report.layout import WEAK, WEAK_HEADING
from purifiers.report.ranking import Ranked
from purifiers.report.ranking_files import sections
from purifiers.report.styles import COLOURS


def draw_gains(document: Document, ranked: Sequence[Ranked]) -> Figure:
    """Draw one panel per data set and one line per purifier, best mean gain first.

    A filled circle is the gain under the audit with its interval, a hollow one the gain under the
    papers' protocol, attacks on the classifier alone. One colour per base.
    """
    panels = {
        label: [entry for entry in entries if entry.defended]
        for label, entries in sections(ranked).items()
    }
    bases = list(dict.fromkeys(cell.training for cell in document.cells))
    colours = {base: COLOURS[k % len(COLOURS)] for k, base in enumerate(bases)}
    most = max(len({entry.row for entry in entries}) for entries in panels.values())
    picture = Figure(figsize=(2.4 + 3.4 * len(panels), 1.6 + 0.3 * most), layout="constrained")
    for (label, entries), axes in zip(
        panels.items(), picture.subplots(1, len(panels), squeeze=False)[0], strict=True
    ):
        _gains(axes, entries, colours)
        axes.set_title(label, fontsize=9)
    grey = {"color": "0.35", "linestyle": "none", "marker": "o", "markersize": 5}
    handles = [Line2D([], [], color=colour, label=base, lw=4) for base, colour in colours.items()]
    handles += [
        Line2D([], [], label="audit: every attack, worst case per image", **grey),  # type: ignore[arg-type]
        Line2D([], [], label="attacks on the classifier alone", mfc="none", **grey),  # type: ignore[arg-type]
    ]
    if any(entry.warnings for entry in ranked):
        handles.append(Line2D([], [], linestyle="none", label=f"{WEAK} {WEAK_HEADING.lower()}"))
    picture.legend(handles=handles, fontsize=7, loc="outside lower center", ncols=3)
    return picture


def _gains(axes: Axes, entries: Sequence[Ranked], colours: dict[str, str]) -> None:
    means = pd.DataFrame([(e.defence, e.gain) for e in entries], columns=["defence", "gain"])
    order = list(means.groupby("defence", sort=False)["gain"].mean().sort_values().index)[::-1]
    axes.axvline(0, color="0.5", linewidth=1, zorder=1)
    bases = {name: [e.base for e in entries if e.defence == name] for name in order}
    for entry in entries:
        colour = colours[entry.base]
        beside = sorted(bases[entry.defence], key=list(colours).index)
        offset = 0.24 * (beside.index(entry.base) - (len(beside) - 1) / 2)
        y = order.index(entry.defence) + offset
        axes.plot((entry.gain_low, entry.gain_high), (y, y), color=colour, lw=1, zorder=2)
        axes.plot(entry.protocol_gain, y, "o", color="white", mec=colour, ms=3.5, zorder=2)
        axes.plot(entry.gain, y, "o", color=colour, ms=4, zorder=3)
        if entry.warnings:
            axes.annotate(
                WEAK, (entry.gain, y), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel("accuracy less that of the base alone (points)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)


def draw_matrix(document: Document, frame: pd.DataFrame, ranked: Sequence[Ranked]) -> Figure:
    """Draw the accuracy of every defence, best first, under every attack; one panel per data set.

    Values with signs of a weak attack are marked.
    """
    panels = sections(ranked)
    most = max(len(entries) for entries in panels.values())
    columns = {
        cell.column: cell.column_label for cell in document.cells if cell.metric == "accuracy"
    }
    width = 2.6 + (2.2 + 0.42 * len(columns)) * len(panels)
    picture = Figure(figsize=(width, 2.6 + 0.17 * most), layout="constrained")
    found = {
        (cell.dataset, cell.training, cell.row, cell.column): (value, suspicious)
        for cell, value, suspicious in zip(
            document.cells, frame["reproduced"], frame["suspicious"], strict=True
        )
    }
    for (label, entries), axes in zip(
        panels.items(), picture.subplots(1, len(panels), squeeze=False)[0], strict=True
    ):
        values = np.full((len(entries), len(columns)), np.nan)
        for y, entry in enumerate(entries):
            for x, column in enumerate(columns):
                key = (entry.dataset, entry.base, entry.row, column)
                value, suspicious = found.get(key, (np.nan, False))
                if pd.isna(value):
                    continue
                values[y, x] = value
                text = f"{value:.0f}{WEAK if suspicious else ''}"
                colour = "white" if value < 55 else "black"
                axes.text(x, y, text, ha="center", va="center", fontsize=5.5, color=colour)
        axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(len(columns)), list(columns.values()), rotation=60, ha="right")
        axes.set_yticks(range(len(entries)), [f"{e.defence} ({e.base})" for e in entries])
        axes.tick_params(labelsize=6)
        axes.set_title(f"{label}: accuracy (percent)", fontsize=9)
    return picture
