"""Cells and documents: what a paper's tables ask for, after everything has been looked up."""

from __future__ import annotations

from dataclasses import dataclass

STAGE_OF = {
    "mutual_information": "information",
    "seconds_per_image": "time",
    "seconds_per_image_batched": "time",
    "train_minutes": "time",
}
"""Metrics that another stage than ``score`` measures."""

WORDS = "published: "
"""How the flag begins that keeps a published value which is no number, such as ``ReLU``."""

DOUBT = "doubtful: "
"""How the flag begins that tells what speaks against the published number."""


@dataclass(frozen=True)
class Cell:
    """One number of one table.

    Attributes:
        document: file stem of the declaration: ``table_3``, ``figure_6``, ``audit``.
        dataset: as the paper names it; ``used_dataset`` is the one really used at this scale.
        state: ``planned``, ``not implemented``, ``not run`` (left out at this scale),
            ``quoted`` (the paper takes it from elsewhere) or ``configuration``.
        reason: why it is not planned.
        scores: per seed the ids of its score runs; several ids: the lowest accuracy counts, or
            with ``mean`` the mean.
        eot: draws behind each of the attacker's gradients; 0 where nothing is said.
        stochastic: a method of the chain is random.
        source: classifier and training that a transfer attack was made on.
        blind: its attack knows no model, so that it is no adversary: a corruption.
    """

    paper: str
    table: str
    document: str
    block: str
    row: str
    column: str
    block_label: str
    row_label: str
    column_label: str
    dataset: str
    used_dataset: str | None
    classifier: str
    training: str
    methods: tuple[str, ...]
    attack: str
    threat_model: str
    gradient: str
    metric: str
    unit: str
    published: float | None
    flags: tuple[str, ...]
    state: str
    reason: str
    scores: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    eot: int = 0
    stochastic: bool = False
    source: str = ""
    mean: bool = False
    blind: bool = False

    @property
    def stage(self) -> str:
        """The stage of the runs in ``scores``."""
        return STAGE_OF.get(self.metric, "score")


@dataclass(frozen=True)
class ImageGrid:
    """The images that a document shows.

    Attributes:
        each: how many test images per cell.
        rows: ids of the rows whose cells are shown; empty: all.
        columns: ids of the columns, likewise.
    """

    each: int
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A table, a figure or the audit; cells in row-major order inside each block.

    Attributes:
        plot: how it is drawn: ``curves``, ``audit``, or ``""`` for not at all.
        axis: what its columns are, for curves.
        images: the images that are shown, if any.
    """

    paper: str
    document: str
    title: str
    where: str
    notes: tuple[str, ...]
    status: str
    cells: tuple[Cell, ...]
    plot: str = ""
    axis: str = ""
    images: ImageGrid | None = None


@dataclass(frozen=True)
class ScaleInfo:
    """What a report must say of the scale.

    Attributes:
        reduced: sizes or budgets are below the papers'.
    """

    name: str
    label: str
    stand_in_note: str
    reduced: bool
