"""Draw the distribution of a per-image value: one panel per block, one outline per row."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from purifiers.plan.cells import Document
from purifiers.report.results import Results

BINS = 40
COLUMNS = 3
NEGATIVE, POSITIVE = "natural", "adversarial"
"""Ids of the rows between which a panel's title gives the area under the ROC curve."""


def draw_histograms(document: Document, frame: pd.DataFrame, results: Results) -> Figure:
    """Draw the values of all finished seeds.

    Args:
        document: a document whose metrics are means over the images.
        frame: its aggregate.
        results: the finished runs.
    """
    blocks = list(dict.fromkeys(frame["block"]))
    rows = -(-len(blocks) // COLUMNS)
    picture = Figure(figsize=(4.0 * COLUMNS, 2.8 * rows + 0.8), layout="constrained")
    panels = list(picture.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes in panels:
        axes.set_visible(False)
    for axes, block in zip(panels[: len(blocks)], blocks, strict=True):
        cells = [cell for cell in document.cells if cell.block == block]
        values = {cell.row: results.per_image(cell) for cell in cells}
        measured = [value for value in values.values() if len(value)]
        if not measured:
            continue
        axes.set_visible(True)
        edges = np.histogram_bin_edges(np.concatenate(measured), BINS)
        for cell in cells:
            if len(values[cell.row]):
                axes.hist(
                    values[cell.row], edges, density=True, histtype="step", label=cell.row_label
                )
        title = cells[0].block_label
        area = area_under_curve(values.get(NEGATIVE), values.get(POSITIVE))
        if area is not None:
            title += f": AUC {area:.3f}"
        axes.set_title(title, fontsize=8)
        axes.set_xlabel(cells[0].metric.replace("_", " ").removeprefix("purified "))
        axes.set_ylabel("density")
    handles, labels = next(
        (axes.get_legend_handles_labels() for axes in panels if axes.get_visible()), ([], [])
    )
    picture.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return picture


def area_under_curve(negative: np.ndarray | None, positive: np.ndarray | None) -> float | None:
    """Area under the ROC curve of a threshold on the value; None if one side has no value.

    Args:
        negative, positive: values of natural and of attacked images.
    """
    if negative is None or positive is None or not len(negative) or not len(positive):
        return None
    truth = np.repeat([0, 1], [len(negative), len(positive)])
    return float(roc_auc_score(truth, np.concatenate([negative, positive])))
