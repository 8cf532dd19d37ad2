"""Draw certified accuracy over the L2 radius: one panel per column, one step curve per row."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from purifiers.plan.cells import Document
from purifiers.report.results import Results


def draw_certified(document: Document, results: Results) -> Figure:
    """Draw the share of images that are certified at each radius, over all finished seeds.

    Args:
        document: a document of metric ``certified_radius``, with a single block.
        results: the finished runs.
    """
    columns = list(dict.fromkeys(cell.column for cell in document.cells))
    picture = Figure(figsize=(3.6 * len(columns) + 0.4, 3.8), layout="constrained")
    panels = picture.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, column in zip(panels, columns, strict=True):
        cells = [cell for cell in document.cells if cell.column == column]
        for number, cell in enumerate(cells):
            radii = results.per_image(cell)
            if len(radii):
                edges, shares = certified_curve(radii)
                axes.step(
                    edges, 100 * shares, where="pre", label=cell.row_label, color=f"C{number}"
                )
        axes.set_title(f"sigma {cells[0].column_label}", fontsize=8)
        axes.set_xlabel("L2 radius")
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("certified accuracy (%)")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    picture.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=7)
    return picture


def certified_curve(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radii in ascending order from 0, and the share of images certified up to each of them.

    Args:
        radii: certified radius of each image; 0 without a certificate.
    """
    certified = np.sort(radii[radii > 0])
    left = np.arange(len(certified), 0, -1) / len(radii)
    start = [left[0] if len(left) else 0.0]
    return np.concatenate([[0.0], certified]), np.concatenate([start, left])
