"""A paper's sentences, judged over the cells that should support them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from purifiers.core.artifacts import write_text
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.aggregate import stand_in
from purifiers.report.bootstrap import paired_difference
from purifiers.report.results import FailureOf, Results

COLUMNS = ("id", "text", "where", "verdict", "evidence", "scale", "stand_in")
KEYS = ("table", "figure", "block", "row", "column")

UNANSWERED = ("not implemented", "failed", "not run")
"""Verdicts of cells without a number, the first of which a claim takes."""

LOWER_IS_BETTER = (
    *("seconds_per_image", "seconds_per_image_batched", "train_minutes"),
    *("mean_l2", "mean_linf"),
)
"""Metrics whose smaller value is the better one."""

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"


@dataclass(frozen=True)
class Question:
    """Is the first cell above the second by more than ``by``, or the only one below ``by``?

    Attributes:
        by: in the cells' unit; points, for accuracies.
    """

    cells: tuple[Cell, ...]
    by: float = 0.0


@dataclass(frozen=True)
class Part:
    """One judged question.

    Attributes:
        outcome: ``HOLDS``, ``CONTRADICTED``, ``UNDECIDED`` or a missing cell's verdict.
        evidence: difference and interval; empty if a cell is missing.
        missing: why each missing cell is missing.
    """

    outcome: str
    evidence: str
    missing: tuple[tuple[str, Cell], ...] = ()


def write_claims(
    paper_claims: Sequence[Mapping[str, Any]],
    documents: Mapping[str, Document],
    scale: ScaleInfo,
    runs_root: Path,
    out_path: Path,
    failure_of: FailureOf,
) -> None:
    """Judge each claim and write ``out_path``, a CSV with the columns ``COLUMNS``.

    A claim's ``decide`` lists parts: ``{better: cell, than: cell}`` or ``{better: cell,
    better_than_all: [cells]}``, either with ``by: points`` (above by more than this; negative: not
    more than this below), or ``{at_most: points, of: cell}`` (of an accuracy).

    A part holds when the 95 % interval of the paired difference lies above ``by``, or that of the
    accuracy below ``at_most``; it is contradicted when the interval lies on the other side, else
    undecided. A claim is ``contradicted`` if any part is; else it takes the verdict of a missing
    cell (``not implemented`` before ``failed`` before ``not run``), its evidence saying which; else
    it is ``supported`` if all parts hold; else, or without any part, ``undecided``.

    Args:
        paper_claims: the list under ``claims`` in ``claims.yaml``.
        documents: all documents of that paper.

    Raises:
        UserError: a claim names a cell that does not exist, or compares what cannot be compared.
    """
    cells = [cell for document in documents.values() for cell in document.cells]
    results = Results(runs_root, failure_of)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for claim in paper_claims:
        asked = list(_asked(claim, cells))
        parts = [_judge(question, results, claim["id"]) for question in asked]
        substitutes = sorted(
            {stand_in(cell) for question in asked for cell in question.cells} - {""}
        )
        writer.writerow(
            {
                "id": claim["id"],
                "text": " ".join(str(claim["text"]).split()),
                "where": claim.get("where", ""),
                "verdict": _verdict([part.outcome for part in parts]),
                "evidence": _evidence(parts),
                "scale": scale.name,
                "stand_in": ", ".join(substitutes),
            }
        )
    write_text(out_path, text.getvalue())


def _evidence(parts: Sequence[Part]) -> str:
    told = [part.evidence for part in parts if part.evidence]
    missing: dict[str, dict[str, None]] = {}
    for reason, cell in (entry for part in parts for entry in part.missing):
        missing.setdefault(reason, {})[_name(cell)] = None
    told += [f"{reason}: {', '.join(names)}" for reason, names in missing.items()]
    return "; ".join(dict.fromkeys(told)) or "no cell decides it"


def _verdict(outcomes: Sequence[str]) -> str:
    for outcome in (CONTRADICTED, *UNANSWERED):
        if outcome in outcomes:
            return outcome
    return "supported" if outcomes and set(outcomes) == {HOLDS} else UNDECIDED


def _asked(claim: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[Question]:
    where = f"claim {claim['id']!r}"
    for part in claim.get("decide", ()):
        if "at_most" in part:
            yield Question((_cell(part["of"], cells, where),), float(part["at_most"]))
            continue
        others = part["better_than_all"] if "better_than_all" in part else [part["than"]]
        better = _cell(part["better"], cells, where)
        for other in others:
            yield Question((better, _cell(other, cells, where)), float(part.get("by", 0.0)))


def _cell(reference: Mapping[str, Any], cells: Sequence[Cell], where: str) -> Cell:
    """The one cell that a reference names; keys that one cell suffices for may be left out."""
    left = list(cells)
    for key in KEYS:
        if key in reference:
            wanted = str(reference[key])
            options = {_place(cell, key) for cell in left}
            left = [cell for cell in left if _place(cell, key) == wanted]
            if not left:
                hint = did_you_mean(wanted, options)
                raise UserError(f"{where}: there is no {key} {wanted!r} in {dict(reference)}{hint}")
    if len(left) > 1:
        raise UserError(f"{where}: {dict(reference)} names {len(left)} cells, name one")
    return left[0]


def _place(cell: Cell, key: str) -> str:
    if key in ("table", "figure"):
        kind, _, number = cell.document.partition("_")
        return number if kind == key else cell.document
    return str(getattr(cell, key))


def _judge(question: Question, results: Results, claim_id: str) -> Part:
    first, *others = question.cells
    for other in others:
        if (first.dataset, first.metric) != (other.dataset, other.metric):
            raise UserError(
                f"claim {claim_id!r}: {_name(first)} and {_name(other)} differ in data set or "
                "metric"
            )
    by_cell = [(cell, results.find(cell)) for cell in question.cells]
    missing = [(cell, runs) for cell, runs in by_cell if runs.missing]
    if missing:
        reasons = tuple(
            (", ".join(map(str, runs.flags)) or runs.missing, cell) for cell, runs in missing
        )
        verdicts = [runs.missing for _, runs in missing]
        outcome = next((known for known in UNANSWERED if known in verdicts), "not run")
        return Part(outcome, "", reasons)
    if not others:
        return _bound(first, question.by, results)
    return _compare(first, others[0], question.by, results)


def _bound(cell: Cell, most: float, results: Results) -> Part:
    """Whether an accuracy is at most so many percent."""
    if cell.metric != "accuracy":
        raise UserError(f"claims: at_most is for accuracies, {_name(cell)} is a {cell.metric}")
    sides = [results.find(cell).seeds]
    seeds = sorted(sides[0])
    (reached,), images = _correct((cell,), sides, seeds)
    bound = [np.full((1, len(images)), most / 100) for _ in seeds]
    left = paired_difference(bound, reached)
    value, low, high = (most - 100 * end for end in (left.estimate, left.high, left.low))
    numbers = f"{value:.1f} [{low:.1f}, {high:.1f}] %, at most {most:g} asked"
    evidence = f"{_name(cell)}: {numbers} ({len(images)} images x {_seeds(seeds)})"
    return Part(_outcome(left.low, left.high), evidence)


def _compare(better: Cell, than: Cell, by: float, results: Results) -> Part:
    sides = [results.find(cell).seeds for cell in (better, than)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    label = _contrast(better, than)
    if not seeds:
        return Part("not run", f"{label}: not run, the two sides have no seed in common")
    if better.metric != "accuracy":
        return _compare_values(better, than, sides, seeds, label, by)
    arrays, images = _correct((better, than), sides, seeds)
    if images.empty:
        return Part("not run", f"{label}: not run, the two sides have no image in common")
    result = paired_difference(*arrays)
    numbers = f"{100 * result.estimate:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}] pp"
    evidence = f"{label}: {numbers} ({len(images)} images x {_seeds(seeds)}){_margin(by)}"
    return Part(_outcome(100 * result.low - by, 100 * result.high - by), evidence)


def _correct(
    cells: Sequence[Cell], sides: Sequence[Any], seeds: Sequence[int]
) -> tuple[list[list[np.ndarray]], pd.Index]:
    """Per cell and seed an array (runs, images), 1 where correct, and the images that all share."""
    scored = [run.scores["correct"] for side in sides for seed in seeds for run in side[seed]]
    images = scored[0].index
    for other in scored[1:]:
        images = images.intersection(other.index)
    arrays = [
        [np.stack([run.scores["correct"].loc[images].to_numpy() for run in side[s]]) for s in seeds]
        for side in sides
    ]
    return [_combined(cell, side) for cell, side in zip(cells, arrays, strict=True)], images


def _compare_values(
    better: Cell, than: Cell, sides: list[Any], seeds: list[int], label: str, by: float
) -> Part:
    """A metric without a value per image: the bootstrap draws seeds only."""
    values = [[[run.value(better.metric) for run in side[s]] for s in seeds] for side in sides]
    if any(value is None for side in values for runs in side for value in runs):
        return Part("not run", f"{label}: not run, {better.metric} was not measured")
    sign = -1.0 if better.metric in LOWER_IS_BETTER else 1.0
    arrays = [[sign * np.array(runs, dtype=float)[:, None] for runs in side] for side in values]
    arrays = [_combined(cell, side) for cell, side in zip((better, than), arrays, strict=True)]
    result = paired_difference(*arrays)
    gain = f"{result.estimate:+.3g} [{result.low:+.3g}, {result.high:+.3g}] {better.unit}"
    # One seed gives an interval of no width, which decides nothing.
    outcome = _outcome(result.low - by, result.high - by) if len(seeds) > 1 else UNDECIDED
    return Part(outcome, f"{label}: better by {gain} ({_seeds(seeds)}){_margin(by)}")


def _margin(by: float) -> str:
    return f", more than {by:+g} asked" if by else ""


def _combined(cell: Cell, seeds: list[np.ndarray]) -> list[np.ndarray]:
    """Per seed (runs, images), of which the bootstrap takes the lowest run: a mean is one run."""
    return [runs.mean(axis=0, keepdims=True) for runs in seeds] if cell.mean else seeds


def _outcome(low: float, high: float) -> str:
    return HOLDS if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _name(cell: Cell) -> str:
    labels = (cell.block_label, cell.row_label, cell.column_label)
    return f"{cell.document.replace('_', ' ')} ({', '.join(label for label in labels if label)})"


def _contrast(better: Cell, than: Cell) -> str:
    """``"Madry + AID over Madry (SVHN, Worst)"``: what differs, then what both sides share."""
    sides = [
        (cell.document.replace("_", " "), cell.block_label, cell.row_label, cell.column_label)
        for cell in (better, than)
    ]
    pairs = list(zip(*sides, strict=True))
    shared = [first for first, second in pairs[1:] if first == second and first]
    mine, theirs = (" ".join(pair[side] for pair in pairs if pair[0] != pair[1]) for side in (0, 1))
    return f"{mine} over {theirs} ({', '.join(shared)})" if shared else f"{mine} over {theirs}"
