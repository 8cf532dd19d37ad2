"""What choosing a checkpoint by its accuracy on test images adds to that accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from purifiers.core.artifacts import write_text
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.bootstrap import CONFIDENCE, RESAMPLES, SEED
from purifiers.report.layout import heading, stamp
from purifiers.report.results import Results
from purifiers.report.tables import csv_text, markdown_row

HEADER = (
    *("Column", "Lowest and highest checkpoint", "Mean", "End", "Best on {chosen_on}"),
    *("The same checkpoint on {judged_on}", "Best less the same", "Best less mean"),
    "Best less end",
)


@dataclass(frozen=True)
class Selection:
    """Accuracies of one column's checkpoints, in percent.

    Attributes:
        block, column: of the table.
        label: of both.
        accuracy: of each checkpoint on all images, (checkpoints,), the last one at the end.
        scores: of each checkpoint on the images that it is chosen on, (rounds, checkpoints).
        elsewhere: of each checkpoint on the images that the chosen one is judged on, likewise.
    """

    block: str
    column: str
    label: str
    accuracy: np.ndarray
    scores: np.ndarray
    elsewhere: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The highest score of each round, which a choice on test images would report."""
        highest: np.ndarray = self.scores.max(axis=1)
        return highest

    @property
    def chosen(self) -> np.ndarray:
        """Accuracy elsewhere of the checkpoint with the highest score, by round."""
        highest = self.scores.argmax(axis=1)[:, None]
        chosen: np.ndarray = np.take_along_axis(self.elsewhere, highest, axis=1)[:, 0]
        return chosen


def selections(document: Document, results: Results) -> list[Selection]:
    """Draw the scores of every column whose rows all have finished runs.

    Several seeds are trainings of their own; their rounds are joined, and ``accuracy`` is their
    mean.

    Args:
        document: a row for each checkpoint, in order.
    """
    drawn = []
    for place in dict.fromkeys((cell.block, cell.column) for cell in document.cells):
        cells = [cell for cell in document.cells if (cell.block, cell.column) == place]
        runs = [results.find(cell).seeds for cell in cells]
        seeds = sorted(set.intersection(*(set(of_cell) for of_cell in runs)))
        if not seeds:
            continue
        outcomes = [np.stack([of_cell[seed][0].correct for of_cell in runs]) for seed in seeds]
        drawn.append(selection(cells[0], outcomes, document.choose_on))
    return drawn


def selection(cell: Cell, outcomes: Sequence[np.ndarray], choose_on: int) -> Selection:
    """Draw the scores of one column.

    Args:
        outcomes: per seed, whether each image is correct, bool (checkpoints, images).
        choose_on: images per checkpoint, see :class:`purifiers.plan.cells.Document`.
    """
    generator = np.random.default_rng(SEED)
    rounds = [
        _redrawn(correct, choose_on, generator) if choose_on else _halves(correct, generator)
        for correct in outcomes
    ]
    scores, elsewhere = (100.0 * np.concatenate(part) for part in zip(*rounds, strict=True))
    accuracy = 100.0 * np.mean([correct.mean(axis=1) for correct in outcomes], axis=0)
    label = f"{cell.block_label}: {cell.column_label}"
    return Selection(cell.block, cell.column, label, accuracy, scores, elsewhere)


def _redrawn(
    correct: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shares on ``count`` images drawn anew for each checkpoint, and on all images.

    The images are drawn with replacement: those that were evaluated stand for the test set, however
    many there are.
    """
    checkpoints, images = correct.shape
    rows = generator.integers(images, size=(RESAMPLES, checkpoints, count))
    hits = np.take_along_axis(np.broadcast_to(correct, (RESAMPLES, *correct.shape)), rows, 2)
    return hits.mean(axis=2), np.broadcast_to(correct.mean(axis=1), (RESAMPLES, checkpoints))


def _halves(correct: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shares on a random half of the images, the same for all checkpoints, and on the other."""
    images = correct.shape[1]
    order = generator.permuted(np.tile(np.arange(images), (RESAMPLES, 1)), axis=1)
    first, second = np.split(order, [images // 2], axis=1)
    return correct[:, first].mean(axis=2).T, correct[:, second].mean(axis=2).T


def draw_selection(document: Document, drawn: Sequence[Selection]) -> Figure | None:
    """Draw one panel per column: scores of all checkpoints, and what the best of them reports."""
    if not drawn:
        return None
    labels = list(dict.fromkeys(cell.row_label for cell in document.cells))
    blocks = list(dict.fromkeys(part.block for part in drawn))
    columns = list(dict.fromkeys(part.column for part in drawn))
    size = 4.3 * len(columns) + 0.4, 3.6 * len(blocks) + 0.8
    picture = Figure(figsize=size, layout="constrained")
    panels = picture.subplots(len(blocks), len(columns), squeeze=False)
    for part in drawn:
        axes = panels[blocks.index(part.block), columns.index(part.column)]
        positions = np.arange(len(labels))
        axes.boxplot(
            list(part.scores.T),
            positions=positions,
            whis=(2.5, 97.5),
            showfliers=False,
            widths=0.6,
            medianprops={"color": "0.4"},
        )
        axes.plot(positions, part.accuracy, "o-", ms=4, color="C0", label="on all images")
        low, high = _interval(part.best)
        axes.axhspan(low, high, color="C3", alpha=0.15)
        label = f"best checkpoint, on the {_chosen_on(document)} that it is chosen on"
        axes.axhline(part.best.mean(), color="C3", label=label)
        axes.axhline(part.accuracy.mean(), color="C2", ls="--", label="mean of all checkpoints")
        axes.set_xticks(positions, labels, rotation=60, ha="right", fontsize=7)
        axes.set_title(part.label, fontsize=8)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (%)")
    handles, names = axes.get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=3, fontsize=7)
    return picture


def write_selection(
    document: Document,
    drawn: Sequence[Selection],
    frame: pd.DataFrame,
    scale: ScaleInfo,
    out_dir: Path,
) -> None:
    """Write ``selection.csv`` and ``selection.md``; nothing if no column is complete."""
    if not drawn:
        return
    chosen_on = _chosen_on(document)
    judged_on = "all images" if document.choose_on else "the other half"
    scored_on = (
        f"{document.choose_on} test images drawn anew"
        if document.choose_on
        else "the same random half of the test images"
    )
    lines = [f"**{stamp(document, frame, scale)}**", "", f"# {heading(document)}", ""]
    lines += [
        f"Accuracies in percent. Best: the highest of all checkpoints' scores, each on "
        f"{scored_on}; mean and {CONFIDENCE:.0%} of {RESAMPLES} rounds.",
        "",
        markdown_row([name.format(chosen_on=chosen_on, judged_on=judged_on) for name in HEADER]),
        "|:--" + "|--:" * (len(HEADER) - 1) + "|",
        *(markdown_row((part.label, *_texts(_numbers(part)))) for part in drawn),
    ]
    rows = [
        {"block": part.block, "column": part.column, "label": part.label, **_numbers(part)}
        for part in drawn
    ]
    write_text(out_dir / "selection.md", "\n".join(lines) + "\n")
    write_text(out_dir / "selection.csv", csv_text(pd.DataFrame(rows).assign(scale=scale.name)))


def _chosen_on(document: Document) -> str:
    return f"{document.choose_on} images" if document.choose_on else "half of the images"


def _texts(row: Mapping[str, float]) -> tuple[str, ...]:
    return (
        f"{row['lowest']:.1f} to {row['highest']:.1f}",
        f"{row['mean']:.1f}",
        f"{row['end']:.1f}",
        f"{row['best']:.1f} ({row['best_low']:.1f} to {row['best_high']:.1f})",
        f"{row['chosen']:.1f}",
        f"{row['best'] - row['chosen']:+.1f}",
        f"{row['best'] - row['mean']:+.1f}",
        f"{row['best'] - row['end']:+.1f}",
    )


def _numbers(part: Selection) -> dict[str, float]:
    low, high = _interval(part.best)
    return {
        "lowest": part.accuracy.min(),
        "highest": part.accuracy.max(),
        "mean": part.accuracy.mean(),
        "end": part.accuracy[-1],
        "best": part.best.mean(),
        "best_low": low,
        "best_high": high,
        "chosen": part.chosen.mean(),
    }


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
