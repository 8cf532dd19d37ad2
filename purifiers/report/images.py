"""Draw a few test images: clean, attacked, the difference of the two, and purified."""

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
from purifiers.plan.cells import Cell, Document, ScaleInfo, by_block
from purifiers.report.figures import save
from purifiers.report.layout import heading, stamp
from purifiers.report.results import Results, ScoreRun

KINDS = ("clean", "attacked", "difference", "transformed", "purified")
"""Pictures of one test image, from left to right; those that no cell has are left out."""

RIGHT, WRONG = "#00782e", "#c1121f"
"""Colours of a predicted label; a tick or a cross marks the same without colours."""

LEGEND = (
    "Above a picture: the label that the classifier alone predicts, ✓ correct, ✗ wrong; no label "
    "where no run of this document classified the picture. The difference is scaled to its largest "
    "change of a pixel, printed above it. Images: the first test images among those that most "
    "undefended classifiers classify correctly."
)
TRANSFORMED_LEGEND = (
    "Transformed: after the method's random transform; missing pixels are grey, and of several "
    "masks the first is shown."
)

_INCHES = 0.62  # per side of a picture
_STEP = 1.08  # from one picture to the next, in sides of a picture
_GAP = 0.3  # between the pictures of two test images, in sides of a picture
_PITCH = 1.4  # height of a row, in sides of a picture
_MARGIN = 3.2  # width of the row names, in sides of a picture
_LINE = 0.26  # height of a line of the notes, in sides of a picture


@dataclass(frozen=True)
class Strip:
    """The pictures of one cell.

    Attributes:
        cell: the cell.
        indices: indices of the n test images in their split.
        labels: ground-truth labels.
        pictures: arrays (n, C, H, W) in [0, 1] by kind, the difference in [-1, 1]; no ``purified``
            without a method, and no ``transformed`` without a method that has a random transform.
        predictions: predicted labels (n,) by kind, where a run recorded them.
    """

    cell: Cell
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    pictures: dict[str, npt.NDArray]
    predictions: dict[str, npt.NDArray]


def write_images(
    document: Document, frame: pd.DataFrame, results: Results, scale: ScaleInfo, out_dir: Path
) -> None:
    """Write ``<out_dir>/<document>_images.png``, or one file per block, ending in the block's id.

    Blocks whose runs are the same, because of a stand-in data set, share a picture. Without stored
    images no picture is written, and older ones are removed.
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
    """Group the cells to draw by block, and blocks with the same runs together."""
    alike: dict[Any, list[list[Cell]]] = {}
    for cells in by_block(_cells_to_draw(document)).values():
        alike.setdefault(tuple(cell.scores for cell in cells), []).append(cells)
    return alike.values()


def _cells_to_draw(document: Document) -> Iterator[Cell]:
    """Yield the attacked cells in the rows and columns of the document's image grid."""
    shown = document.images
    if shown is None:
        return
    for cell in document.cells:
        attacked = cell.attack != "none" and cell.combine is None
        if attacked and _scores(cell) and cell.state not in ("quoted", "configuration"):
            in_rows = not shown.rows or cell.row in shown.rows
            if in_rows and (not shown.columns or cell.column in shown.columns):
                yield cell


def collect(
    document: Document, cells: Sequence[Cell], results: Results
) -> tuple[list[Strip], dict[str, str]]:
    """Collect the pictures of cells under the first seed, of the same test images for all cells.

    Returns:
        One strip per cell, and the reasons of the cells left out, by name.
    """
    score_runs = list(_scored(document, results))
    strips: list[Strip] = []
    left_out: dict[str, str] = {}
    for cell in cells:
        score = results.score(cell.scores[0][0]) if cell.scores else None
        if score is None:
            left_out[_name(cell)] = results.find(cell).missing or "not run"
            continue
        indices = strips[0].indices if strips else _first(score, score_runs, document)
        strip = _strip(cell, score, score_runs, indices, results)
        if strip is None or (strips and strip.labels != strips[0].labels):
            left_out[_name(cell)] = "its images are not stored"
        else:
            strips.append(strip)
    return strips, left_out


def _scored(document: Document, results: Results) -> Iterator[ScoreRun]:
    """Yield the document's finished score runs under the first seed."""
    cells = (cell for cell in document.cells if _scores(cell))
    ids = dict.fromkeys(run_id for cell in cells for run_id in (*cell.scores, ())[0])
    yield from (score for run_id in ids if (score := results.score(run_id)) is not None)


def _scores(cell: Cell) -> bool:
    """Whether the cell's metric is accuracy, so that its runs are score runs."""
    return cell.metric == "accuracy"


def _first(score: ScoreRun, score_runs: Sequence[ScoreRun], document: Document) -> tuple[int, ...]:
    """Indices of the first test images among those that most undefended classifiers get right."""
    clean = dataclasses.replace(score.images, run=None, stage="")
    correct_counts = np.zeros(len(score.scores), int)
    for other in score_runs:
        if other.images == clean:
            correct_counts += other.correct
    each = document.images.each if document.images else 0
    best = np.sort(np.argsort(-correct_counts, kind="stable")[:each])
    return tuple(int(index) for index in score.scores.index[best])


def _strip(
    cell: Cell,
    score: ScoreRun,
    score_runs: Sequence[ScoreRun],
    indices: tuple[int, ...],
    results: Results,
) -> Strip | None:
    """Load the pictures of one cell; None if a file is missing or has other images."""
    positions = score.scores.index.get_indexer(pd.Index(indices))
    run_of: dict[str, str] = {}
    pictures: dict[str, npt.NDArray] = {}
    for images, record in image_history(results.root, score.images):
        if record is None:
            return None
        kind = {"attack": "attacked", "purify": "purified"}[images.stage]
        if kind not in pictures:  # of several purifiers only the last one's images
            run = RunFolder(results.root, record.stage, record.id)
            stored = _open(run, "images.npy")
            if stored is None or positions.min() < 0:
                return None
            run_of[kind], pictures[kind] = record.id, stored[positions]
            transformed = _open(run, "transformed.npy") if kind == "purified" else None
            if transformed is not None:
                pictures["transformed"] = transformed[positions] / np.float32(255)
    images = score.images
    folder = RunFolder(results.root, "dataset", images.data)
    stored = _open(folder, f"{images.subset.split}_images.npy")
    if stored is None or "attacked" not in pictures:
        return None
    pictures["clean"] = stored[list(indices)] / np.float32(255)
    pictures["difference"] = pictures["attacked"] - pictures["clean"]
    predictions = {}
    classifier = score.record.spec_as(ScoreSpec).classifier
    for other in score_runs:
        same = (other.images.data, other.images.subset) == (images.data, images.subset)
        if same and other.record.spec_as(ScoreSpec).classifier == classifier:
            for kind in ("clean", "attacked", "purified"):
                if kind in pictures and other.images.run == run_of.get(kind):
                    predictions[kind] = other.scores["prediction"].loc[list(indices)].to_numpy()
    labels = tuple(int(label) for label in score.scores["label"].loc[list(indices)])
    return Strip(cell, indices, labels, pictures, predictions)


def _open(folder: RunFolder, name: str) -> npt.NDArray | None:
    """Memory-map a stored array; None if the run or the file is missing or truncated."""
    if not folder.complete():
        return None
    path, listed = folder.path / name, folder.record(verify=False).files
    if name not in listed or not path.exists() or path.stat().st_size != listed[name]["bytes"]:
        return None
    stored: npt.NDArray = np.load(path, mmap_mode="r")
    return stored


def grid(strips: Sequence[Strip], left_out: dict[str, str]) -> Figure:
    """Draw one row per cell, the pictures of each test image side by side, and notes below."""
    kinds = [kind for kind in KINDS if any(kind in strip.pictures for strip in strips)]
    span = len(kinds) * _STEP + _GAP
    width = _MARGIN + len(strips[0].indices) * span
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    notes = [LEGEND, TRANSFORMED_LEGEND] if "transformed" in kinds else [LEGEND]
    notes += [f"Left out, {reason}: {'; '.join(names)}." for reason, names in by_reason.items()]
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * 10))]
    height = 0.7 + len(strips) * _PITCH + 0.2 + len(lines) * _LINE
    picture = Figure(figsize=(width * _INCHES, height * _INCHES + 0.6), layout="constrained")
    axes = picture.subplots()
    for row, strip in enumerate(strips):
        top = 0.7 + row * _PITCH + 0.3
        name = textwrap.fill(_name(strip.cell), 28, break_on_hyphens=False)
        axes.text(-0.2, top + 0.5, name, fontsize=7, ha="right", va="center")
        for column in range(len(strip.indices)):
            _row(axes, strip, kinds, column, column * span, top)
    for column, (index, label) in enumerate(zip(strips[0].indices, strips[0].labels, strict=True)):
        left = column * span
        axes.text(left, 0.2, f"test image {index}: {label}", fontsize=8, weight="bold")
        for number, kind in enumerate(kinds):
            axes.text(left + number * _STEP + 0.5, 0.6, kind, fontsize=7, ha="center")
    bottom = height - len(lines) * _LINE
    axes.text(-_MARGIN, bottom, "\n".join(lines), fontsize=7, va="top")
    axes.set(xlim=(-_MARGIN, width - _MARGIN), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    return picture


def _row(
    axes: Axes, strip: Strip, kinds: Sequence[str], column: int, left: float, top: float
) -> None:
    """Draw the pictures of one test image, each with its text above it."""
    style: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "bottom"}
    for number, kind in enumerate(kinds):
        if kind not in strip.pictures:
            continue
        x, pixels = left + number * _STEP, strip.pictures[kind][column]
        if kind == "difference":
            largest = float(np.abs(pixels).max())
            pixels = 0.5 + pixels / (2 * largest or 1.0)
            axes.text(x + 0.5, top - 0.05, f"±{largest:.2g}", color="0.4", **style)
        elif kind in strip.predictions:
            prediction = int(strip.predictions[kind][column])
            correct = prediction == strip.labels[column]
            text, colour = (f"{prediction} ✓", RIGHT) if correct else (f"{prediction} ✗", WRONG)
            axes.text(x + 0.5, top - 0.05, text, color=colour, **style)
        axes.imshow(
            pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0),
            cmap="gray",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
            extent=(x, x + 1, top + 1, top),
            gid=f"{strip.cell.row}/{strip.cell.column}/{strip.indices[column]}/{kind}",
        )


def _name(cell: Cell) -> str:
    return f"{cell.row_label} / {cell.column_label}"
