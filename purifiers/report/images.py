"""Pictures of what became of a few test images: clean, attacked, changed by how much, purified."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purifiers.core.ancestry import image_history
from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import ScoreSpec
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.figures import save
from purifiers.report.layout import heading, stamp
from purifiers.report.results import Results, ScoreRun

KINDS = ("clean", "attacked", "difference", "purified")
"""The pictures of one image, from left to right."""

RIGHT, WRONG = "#00782e", "#c1121f"
"""Colours of a predicted label; a tick or a cross says the same without colours."""

LEGEND = (
    "Above a picture: what the classifier alone says of it, ✓ right, ✗ wrong; nothing where no run "
    "of this document tells. The difference is stretched to the largest change of a pixel, which "
    "stands above it. Images: the first that the most undefended classifiers have right."
)

_INCHES = 0.62  # per side of a picture
_SPAN = len(KINDS) * 1.08 + 0.3  # of one image's pictures, in sides of a picture
_PITCH = 1.4  # from row to row
_MARGIN = 3.2  # of the rows' names
_LINE = 0.26  # of a note


@dataclass(frozen=True)
class Strip:
    """What became of the images in one cell.

    Attributes:
        indices: the images' indices in their split.
        labels: their labels.
        pictures: per kind (n, C, H, W) in [0, 1]; nothing is purified where there is no method.
        predictions: per kind what the classifier says of each picture, where a run tells.
    """

    cell: Cell
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    pictures: dict[str, npt.NDArray]
    predictions: dict[str, npt.NDArray]


def write_images(
    document: Document, frame: pd.DataFrame, results: Results, scale: ScaleInfo, out_dir: Path
) -> None:
    """Write ``<out_dir>/<document>_images.png``, or one per block with the block's id at the end.

    Blocks that a stand-in data set makes the same share a picture. Where no run's images are there
    is none; older pictures are removed.
    """
    stem = f"{document.document}_images"
    several = len({cell.block for cell in document.cells}) > 1
    drawn = {}
    for alike in _blocks(document):
        strips, left_out = collect(document, alike[0], results)
        if strips:
            name = f"{stem}_{alike[0][0].block}" if several else stem
            labels = ", ".join(cells[0].block_label for cells in alike)
            drawn[name] = labels, grid(strips, left_out)
    for path in out_dir.glob(f"{stem}*.png"):
        if path.stem not in drawn:
            path.unlink()
    for name, (labels, picture) in drawn.items():
        title = f"{heading(document)}: {labels}\n{stamp(document, frame, scale)}"
        save(picture, out_dir / f"{name}.png", title)


def _blocks(document: Document) -> Iterable[list[list[Cell]]]:
    """The cells to show by block; blocks of the same runs together."""
    blocks: dict[str, list[Cell]] = {}
    for cell in _chosen(document):
        blocks.setdefault(cell.block, []).append(cell)
    alike: dict[Any, list[list[Cell]]] = {}
    for cells in blocks.values():
        alike.setdefault(tuple(cell.scores for cell in cells), []).append(cells)
    return alike.values()


def _chosen(document: Document) -> Iterator[Cell]:
    """The cells whose images are asked for, and that can have some."""
    asked = document.images
    for cell in document.cells:
        attacked = cell.attack != "none" and cell.combine is None
        if asked and attacked and _scores(cell) and cell.state not in ("quoted", "configuration"):
            shown = not asked.rows or cell.row in asked.rows
            if shown and (not asked.columns or cell.column in asked.columns):
                yield cell


def collect(
    document: Document, cells: Sequence[Cell], results: Results
) -> tuple[list[Strip], dict[str, str]]:
    """The images of cells under the first seed, the same ones for all.

    Returns:
        A strip per cell, and for cells that are left out their name and why.
    """
    known = list(_scored(document, results))
    strips: list[Strip] = []
    left_out: dict[str, str] = {}
    for cell in cells:
        score = results.score(cell.scores[0][0]) if cell.scores else None
        if score is None:
            left_out[_name(cell)] = results.find(cell).missing or "not run"
            continue
        indices = strips[0].indices if strips else _first(score, known, document)
        strip = _strip(cell, score, known, indices, results)
        if strip is None or (strips and strip.labels != strips[0].labels):
            left_out[_name(cell)] = "its images are not there"
        else:
            strips.append(strip)
    return strips, left_out


def _scored(document: Document, results: Results) -> Iterator[ScoreRun]:
    """The document's score runs under the first seed."""
    cells = (cell for cell in document.cells if _scores(cell))
    ids = dict.fromkeys(run_id for cell in cells for run_id in (*cell.scores, ())[0])
    yield from (score for run_id in ids if (score := results.score(run_id)) is not None)


def _scores(cell: Cell) -> bool:
    """Whether the cell's runs are score runs."""
    return cell.metric == "accuracy"


def _first(score: ScoreRun, known: Sequence[ScoreRun], document: Document) -> tuple[int, ...]:
    """Indices of the first images that the most undefended classifiers have right."""
    clean = dataclasses.replace(score.images, run=None, stage="")
    right = np.zeros(len(score.scores), int)
    for other in known:
        if other.images == clean:
            right += other.correct
    each = document.images.each if document.images else 0
    best = np.sort(np.argsort(-right, kind="stable")[:each])
    return tuple(int(index) for index in score.scores.index[best])


def _strip(
    cell: Cell,
    score: ScoreRun,
    known: Sequence[ScoreRun],
    indices: tuple[int, ...],
    results: Results,
) -> Strip | None:
    """The pictures of one cell, or None if a file is not there or has other images."""
    places = score.scores.index.get_indexer(pd.Index(indices))
    made_by: dict[str, str] = {}
    pictures: dict[str, npt.NDArray] = {}
    for images, record in image_history(results.root, score.images):
        if record is None:
            return None
        kind = {"attack": "attacked", "purify": "purified"}[images.stage]
        if kind not in pictures:  # of several purifiers the last
            stored = _open(RunFolder(results.root, record.stage, record.id), "images.npy")
            if stored is None or places.min() < 0:
                return None
            made_by[kind], pictures[kind] = record.id, stored[places]
    images = score.images
    folder = RunFolder(results.root, "dataset", images.data)
    stored = _open(folder, f"{images.subset.split}_images.npy")
    if stored is None or "attacked" not in pictures:
        return None
    pictures["clean"] = stored[list(indices)] / np.float32(255)
    pictures["difference"] = pictures["attacked"] - pictures["clean"]
    predictions = {}
    classifier = score.record.spec_as(ScoreSpec).classifier
    for other in known:
        same = (other.images.data, other.images.subset) == (images.data, images.subset)
        if same and other.record.spec_as(ScoreSpec).classifier == classifier:
            for kind in ("clean", "attacked", "purified"):
                if kind in pictures and other.images.run == made_by.get(kind):
                    predictions[kind] = other.scores["prediction"].loc[list(indices)].to_numpy()
    labels = tuple(int(label) for label in score.scores["label"].loc[list(indices)])
    return Strip(cell, indices, labels, pictures, predictions)


def _open(folder: RunFolder, name: str) -> npt.NDArray | None:
    """A stored array, memory-mapped; None if the run or the file is not there or is cut short."""
    if not folder.complete():
        return None
    path, listed = folder.path / name, folder.record(verify=False).files
    if name not in listed or not path.exists() or path.stat().st_size != listed[name]["bytes"]:
        return None
    stored: npt.NDArray = np.load(path, mmap_mode="r")
    return stored


def grid(strips: Sequence[Strip], left_out: dict[str, str]) -> Figure:
    """A row per cell, an image's pictures side by side; below, what is left out and why."""
    width = _MARGIN + len(strips[0].indices) * _SPAN
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    notes = [LEGEND, *(f"Left out, {why}: {'; '.join(who)}." for why, who in by_reason.items())]
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * 10))]
    height = 0.7 + len(strips) * _PITCH + 0.2 + len(lines) * _LINE
    picture = Figure(figsize=(width * _INCHES, height * _INCHES + 0.6), layout="constrained")
    axes = picture.subplots()
    for row, strip in enumerate(strips):
        top = 0.7 + row * _PITCH + 0.3
        words = textwrap.fill(_name(strip.cell), 28, break_on_hyphens=False)
        axes.text(-0.2, top + 0.5, words, fontsize=7, ha="right", va="center")
        for place in range(len(strip.indices)):
            _row(axes, strip, place, place * _SPAN, top)
    for place, (index, label) in enumerate(zip(strips[0].indices, strips[0].labels, strict=True)):
        left = place * _SPAN
        axes.text(left, 0.2, f"test image {index}: {label}", fontsize=8, weight="bold")
        for number, kind in enumerate(KINDS):
            axes.text(left + number * 1.08 + 0.5, 0.6, kind, fontsize=7, ha="center")
    bottom = height - len(lines) * _LINE
    axes.text(-_MARGIN, bottom, "\n".join(lines), fontsize=7, va="top")
    axes.set(xlim=(-_MARGIN, width - _MARGIN), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    return picture


def _row(axes: Axes, strip: Strip, place: int, left: float, top: float) -> None:
    """The pictures of one image, each with its text above it."""
    words: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "bottom"}
    for number, kind in enumerate(KINDS):
        if kind not in strip.pictures:
            continue
        x, pixels = left + number * 1.08, strip.pictures[kind][place]
        if kind == "difference":
            most = float(np.abs(pixels).max())
            pixels = 0.5 + pixels / (2 * most or 1.0)
            axes.text(x + 0.5, top - 0.05, f"±{most:.2g}", color="0.4", **words)
        elif kind in strip.predictions:
            said = int(strip.predictions[kind][place])
            right = said == strip.labels[place]
            text, colour = (f"{said} ✓", RIGHT) if right else (f"{said} ✗", WRONG)
            axes.text(x + 0.5, top - 0.05, text, color=colour, **words)
        axes.imshow(
            pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0),
            cmap="gray",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
            extent=(x, x + 1, top + 1, top),
            gid=f"{strip.cell.row}/{strip.cell.column}/{strip.indices[place]}/{kind}",
        )


def _name(cell: Cell) -> str:
    return f"{cell.row_label} / {cell.column_label}"
