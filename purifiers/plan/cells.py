"""Cells and documents: what a paper's tables ask for, after everything has been looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGE_OF = {
    "mutual_information": "information",
    "seconds_per_image": "time",
    "seconds_per_image_batched": "time",
    "train_minutes": "time",
}
"""Metrics that another stage than ``score`` measures."""

FlagKind = Literal["note", "words", "doubt", "remark", "data", "run"]
"""What a flag is about.

``note``: declared with the cell. ``words``: a published value that is no number, such as ``ReLU``.
``doubt``: evidence against the published number. ``remark``: what a component's parameters imply.
``data``: images that are not the original ones. ``run``: why a run is missing, or what it was
timed on.
"""

_PREFIX = {"words": "published: ", "doubt": "doubtful: "}


@dataclass(frozen=True)
class Flag:
    """Something that readers of a cell must know."""

    kind: FlagKind
    text: str

    def __str__(self) -> str:
        return _PREFIX.get(self.kind, "") + self.text


@dataclass(frozen=True)
class Combine:
    """How one number is made of several runs.

    Attributes:
        how: ``worst``: the lowest accuracy counts; ``mean``.
        over: the columns, attacks, or values of ``parameter`` that are combined.
        parameter: of the attack; ``""`` where columns or attacks are combined.
    """

    how: Literal["worst", "mean"]
    over: tuple[str, ...]
    parameter: str = ""


@dataclass(frozen=True)
class Cell:
    """One number of one table.

    Attributes:
        document: file stem of the declaration: ``table_3``, ``figure_6``, ``audit``.
        dataset: as the paper names it; ``used_dataset`` is the one really used at this scale.
        state: ``planned``, ``not implemented``, ``not run`` (left out at this scale),
            ``quoted`` (the paper takes it from elsewhere) or ``configuration``.
        reason: why it is not planned.
        attack: name of the recipe, ``none`` for clean images.
        scores: per seed the ids of its score runs; several ids are combined.
        combine: how; None for a single run.
        eot: draws behind each of the attacker's gradients; 0: not declared.
        stochastic: a method of the chain is random.
        source: classifier and training that a transfer attack was made on.
        model_free: its attack queries no model, so that it is no adversary: a corruption.
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
    flags: tuple[Flag, ...]
    state: str
    reason: str
    scores: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    eot: int = 0
    stochastic: bool = False
    source: str = ""
    combine: Combine | None = None
    model_free: bool = False

    @property
    def stage(self) -> str:
        """The stage of the runs in ``scores``."""
        return STAGE_OF.get(self.metric, "score")

    @property
    def attacked(self) -> bool:
        """Whether its images are attacked, or some of those that it combines."""
        return self.combine is not None or self.attack != "none"

    @property
    def mean(self) -> bool:
        """Whether it is the mean of its runs, and not the lowest of them."""
        return self.combine is not None and self.combine.how == "mean"

    @property
    def attack_label(self) -> str:
        """The attack in words."""
        if self.combine is None:
            return self.attack
        listed = ", ".join(self.combine.over)
        if self.combine.parameter:
            return f"{self.attack}, {self.combine.how} over {self.combine.parameter} {listed}"
        return f"{self.combine.how} of {listed}"


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
    """What a report prints about the scale.

    Attributes:
        reduced: sizes or budgets are below the papers'.
    """

    name: str
    label: str
    stand_in_note: str
    reduced: bool
