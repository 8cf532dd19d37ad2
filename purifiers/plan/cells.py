"""Cells, documents and flags: a paper's tables with every recipe and run resolved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from purifiers.core.artifacts import short_hash

STAGE_OF = {
    "mutual_information": "information",
    "score_norm": "norm",
    "purified_score_norm": "norm",
    "attacked_distance": "trace",
    "purified_distance": "trace",
    "smoothed_accuracy": "smooth",
    "smoothed_prediction": "smooth",
    "certified_radius": "smooth",
    "seconds_per_image": "time",
    "seconds_per_image_batched": "time",
    "train_minutes": "time",
}
"""Metric to the stage that measures it, where that is not ``score``."""

FlagKind = Literal["note", "words", "doubt", "remark", "data", "run"]
"""The kind of a flag.

``note``: declared with the cell. ``words``: a published value that is text, such as ``ReLU``.
``doubt``: evidence against the published number. ``remark``: a consequence of a component's
parameters, or what the scale's limits took from the cell. ``data``: how the images differ from the
original ones, or what went wrong in a training. ``run``: why a run is missing, or the device it was
timed on.
"""

_PREFIX = {"words": "published: ", "doubt": "doubtful: "}


@dataclass(frozen=True)
class Flag:
    """A sentence that a table prints about a cell.

    Attributes:
        kind: see :data:`FlagKind`.
        text: the sentence.
    """

    kind: FlagKind
    text: str

    def __str__(self) -> str:
        return _PREFIX.get(self.kind, "") + self.text


@dataclass(frozen=True)
class Lowered:
    """A number that the scale's limits made smaller, such as ``2 of 15 EOT samples``."""

    what: str
    declared: int
    run: int

    def __str__(self) -> str:
        return f"{self.run} of {self.declared} {self.what}"


@dataclass(frozen=True)
class Combine:
    """How a cell combines several runs into one number.

    Attributes:
        how: ``worst`` for the lowest accuracy, ``worst_image`` for the share of images that no run
            breaks, ``mean`` for the mean.
        over: the columns, attacks, or values of ``parameter`` that are combined.
        parameter: parameter of the attack; ``""`` where columns or attacks are combined.
    """

    how: Literal["worst", "worst_image", "mean"]
    over: tuple[str, ...]
    parameter: str = ""


@dataclass(frozen=True)
class Cell:
    """One number of one table.

    Attributes:
        document: file stem of the declaration: ``table_3``, ``figure_6``, ``audit``.
        dataset: the paper's data set.
        used_dataset: the data set used at this scale; None where the cell is not planned.
        attack: name of the recipe, ``none`` for clean images.
        published: the paper's value in ``unit``; None where it printed no number.
        state: ``planned``, ``not implemented``, ``not run`` (data set left out at this scale),
            ``quoted`` (the paper copied it from another publication) or ``configuration``.
        reason: why the cell is not planned.
        scores: ids of the score runs, one tuple per seed; several ids of a seed are combined.
        seeds: the seed of each entry of ``scores``.
        eot: EOT samples per gradient of the attack; 0: not declared.
        stochastic: whether a method of the chain is random.
        source: classifier and training that a transfer attack uses as its source.
        combine: how the runs of a seed are combined; None for a single run.
        model_free: whether the attack queries no model (a corruption).
        lowered: what the scale's limits took from the cell.
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
    lowered: tuple[Lowered, ...] = ()

    @property
    def stage(self) -> str:
        """Stage of the runs in ``scores``."""
        return STAGE_OF.get(self.metric, "score")

    @property
    def identity(self) -> str:
        """Digest of what is measured and of the ids of all runs behind it; ``""`` without runs."""
        if not self.scores:
            return ""
        return short_hash((self.metric, self.combine and self.combine.how, self.scores))

    @property
    def attacked(self) -> bool:
        """Whether the cell has an attack or combines several cells."""
        return self.combine is not None or self.attack != "none"

    @property
    def queried(self) -> Literal["classifier", "defence", ""]:
        """What the attack queries: the classifier alone, or the whole defence.

        ``""`` for clean, corrupted and transferred images, and for combined cells.
        """
        if self.attack == "none" or self.combine is not None or self.model_free:
            return ""
        if self.threat_model == "white_box":
            return "defence"
        if self.threat_model == "black_box":
            return "" if self.source else "defence"
        return "classifier" if self.threat_model in ("", "oblivious") else ""

    @property
    def mean(self) -> bool:
        """Whether the cell is the mean of its runs instead of the lowest of them."""
        return self.combine is not None and self.combine.how == "mean"

    @property
    def per_image(self) -> bool:
        """Whether an image counts as correct only if every run classifies it correctly."""
        return self.combine is not None and self.combine.how == "worst_image"

    @property
    def attack_label(self) -> str:
        """Name of the attack, or of the attacks that are combined."""
        if self.combine is None:
            return self.attack
        listed = ", ".join(self.combine.over)
        if self.combine.parameter:
            return f"{self.attack}, {self.combine.how} over {self.combine.parameter} {listed}"
        how = {"worst_image": "worst case per image"}.get(self.combine.how, self.combine.how)
        return f"{how} of {listed}"


@dataclass(frozen=True)
class ImageGrid:
    """Selection of the cells and images in a document's picture of examples.

    Attributes:
        each: number of test images per cell.
        rows: ids of the rows shown; empty: all.
        columns: ids of the columns shown; empty: all.
    """

    each: int
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A table, a figure or the audit; cells in row-major order inside each block.

    Attributes:
        document: file stem of the declaration, such as ``table_3``.
        where: place in the paper.
        status: ``measured``, ``configuration`` or ``qualitative``.
        plot: what the picture shows, see :mod:`purifiers.report.figures`; ``""`` for no picture.
        axis: label of the x-axis, for curves.
        images: the picture of example images; None: no such picture.
        choose_on: for ``selection``: images by which each checkpoint is chosen, drawn anew for
            each; 0: half of the evaluated images, the same for all checkpoints.
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
    choose_on: int = 0


def by_block(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Group cells by block; blocks and cells keep their order."""
    blocks: dict[str, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.block, []).append(cell)
    return blocks


@dataclass(frozen=True)
class ScaleInfo:
    """What a report prints about a scale.

    Attributes:
        stand_in_note: sentence printed where another data set replaces the paper's.
        reduced: whether sizes or budgets are below the papers'.
    """

    name: str
    label: str
    stand_in_note: str
    reduced: bool
