"""Draw t-SNE maps of one image's states under several attacks, as ADP's Figure 10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.spatial import Voronoi
from sklearn.manifold import TSNE

from purifiers.plan.cells import Document
from purifiers.report.results import Results

PERPLEXITY = 30.0
"""scikit-learn's default; the paper names none."""
RIGHT, WRONG = "#c6dbef", "#fcbba1"
"""Colours of the regions in which the classifier is right and wrong; blue and red in the paper."""


def draw_maps(document: Document, results: Results) -> Figure | None:
    """Draw image space, embedding space, and the states' paths through the embeddings.

    One point per state and random draw of the first test image; the Voronoi cell of a point has the
    colour of its prediction. One seed: the first.

    Args:
        document: cells that trace the same image under one attack each.
        results: the finished runs.
    """
    traced: dict[str, dict[str, np.ndarray]] = {}
    for cell in document.cells:
        runs = next(iter(results.find(cell).seeds.values()), ())
        if runs and cell.row not in traced:
            traced[cell.row] = _read(runs[0].folder)
    if not traced:
        return None
    label_of = {cell.row: cell.row_label for cell in document.cells}
    shapes = {row: states["correct"].shape for row, states in traced.items()}
    correct = np.concatenate([states["correct"].ravel() for states in traced.values()])
    picture = Figure(figsize=(13.0, 4.8), layout="constrained")
    panels = picture.subplots(1, 3)
    for axes, space in zip(panels, ("pixels", "embeddings", "embeddings"), strict=True):
        points = np.concatenate(
            [states[space].reshape(-1, states[space].shape[-1]) for states in traced.values()]
        )
        _regions(axes, positions := _embedded(points), correct)
        start = 0
        for number, (row, (draws, states)) in enumerate(shapes.items()):
            own = positions[start : start + draws * states].reshape(draws, states, 2)
            start += draws * states
            if axes is panels[2]:
                axes.plot(*own[0].T, "-", color=f"C{number}", linewidth=1)
                axes.plot(*own[0, -1], "*", color=f"C{number}", ms=11, mec="white")
                own = own[:1]
            axes.plot(*own.reshape(-1, 2).T, ".", color=f"C{number}", ms=4, label=label_of[row])
            axes.plot(*own[0, 0], "s", color=f"C{number}", ms=7, mec="black")
    for axes, title in zip(panels, ("(a) images", "(b) embeddings", "(c) one path"), strict=True):
        axes.set_title(title, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, labels = panels[0].get_legend_handles_labels()
    handles += [Patch(color=RIGHT), Patch(color=WRONG)]
    labels += ["region classified correctly", "region misclassified"]
    picture.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return picture


def _read(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "states.npz") as states:
        return {name: states[name] for name in states.files}


def _embedded(points: np.ndarray) -> np.ndarray:
    """Positions (n, 2) by t-SNE, with a fixed seed."""
    # equal points, such as one attacked image of several draws, share a position
    distinct, where = np.unique(points, axis=0, return_inverse=True)
    perplexity = min(PERPLEXITY, (len(distinct) - 1) / 3)
    positions = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(distinct)
    return np.asarray(positions)[where.ravel()]


def _regions(axes: Axes, positions: np.ndarray, correct: np.ndarray) -> None:
    """Fill the Voronoi cell of each point, cut at a frame around all points."""
    distinct, first = np.unique(positions, axis=0, return_index=True)
    low, high = distinct.min(axis=0), distinct.max(axis=0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    # four far points close the outer cells
    far = 10 * (high - low).max()
    middle = (low + high) / 2
    corners = middle + far * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    diagram = Voronoi(np.concatenate([distinct, corners]))
    for point, row in enumerate(first):
        region = diagram.regions[diagram.point_region[point]]
        colour = RIGHT if correct[row] else WRONG
        axes.fill(*diagram.vertices[region].T, color=colour, linewidth=0)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
