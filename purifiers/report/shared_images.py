"""Values per image of several cells, on the images that all their runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from purifiers.plan.cells import Cell
from purifiers.report.results import MEANS, ScoreRun

SeedRuns = Mapping[int, tuple[ScoreRun, ...]]
"""The runs of a cell, by seed."""


def on_shared_images(
    cells: Sequence[Cell], runs: Sequence[SeedRuns], seeds: Sequence[int]
) -> tuple[list[list[np.ndarray]], pd.Index]:
    """Read what the cells measure, on the images that all runs of these seeds share.

    Args:
        cells: the cells.
        runs: the runs of each cell.
        seeds: seeds that all cells have.

    Returns:
        Per cell and seed an array (runs, images), see :func:`combined`; and the indices of the
        images.
    """
    scored = [run.scores for of_cell in runs for seed in seeds for run in of_cell[seed]]
    images = scored[0].index
    for other in scored[1:]:
        images = images.intersection(other.index)
    arrays = [
        [
            np.stack([run.scores[column_of(cell)].loc[images].to_numpy() for run in of_cell[seed]])
            for seed in seeds
        ]
        for cell, of_cell in zip(cells, runs, strict=True)
    ]
    return [combined(cell, of) for cell, of in zip(cells, arrays, strict=True)], images


def column_of(cell: Cell) -> str:
    """The column of ``scores.parquet`` that a cell's metric is made from."""
    return MEANS.get(cell.metric, "correct")


def combined(cell: Cell, seeds: list[np.ndarray]) -> list[np.ndarray]:
    """Combine the runs of a cell into one, image by image; else the bootstrap takes the lowest."""
    if cell.mean:
        return [runs.mean(axis=0, keepdims=True) for runs in seeds]
    if cell.per_image:
        return [runs.min(axis=0, keepdims=True) for runs in seeds]
    return seeds
