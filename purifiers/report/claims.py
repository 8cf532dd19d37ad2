"""Test a paper's claims over the cells that should support them."""

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
"""Verdicts of cells without a number, in the order of precedence for a claim."""

LOWER_IS_BETTER = (
    *("seconds_per_image", "seconds_per_image_batched", "train_minutes"),
    *("mean_l2", "mean_linf"),
)
"""Metrics for which lower values are better."""

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"


@dataclass(frozen=True)
class Question:
    """One comparison: the first of two cells exceeds the second by more than ``by``, or a single
    cell is below ``by``.

    Attributes:
        cells: one or two cells.
        by: margin or upper bound in the cells' unit; percentage points for accuracies.
    """

    cells: tuple[Cell, ...]
    by: float = 0.0


@dataclass(frozen=True)
class Part:
    """The result of one comparison.

    Attributes:
        outcome: ``HOLDS``, ``CONTRADICTED``, ``UNDECIDED`` or the verdict of a missing cell.
        evidence: difference and interval; empty if a cell is missing.
        missing: missing cells, each after the reason why it is missing.
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
    """Test each claim and write ``out_path``, a CSV with the columns ``COLUMNS``.

    A claim's ``decide`` lists parts of three forms:

    - ``{better: cell, than: cell, by: points}``: the first cell exceeds the second by more than
      ``by`` (default 0; negative: it is at most that far below).
    - ``{better: cell, better_than_all: [cells], by: points}``: the same against each of the cells.
    - ``{at_most: percent, of: cell}``: an accuracy does not exceed a bound.

    A part holds when the 95 % interval of the paired difference lies above ``by``, or that of the
    accuracy below ``at_most``. It is contradicted when the interval lies on the other side, else
    undecided.

    The verdict of a claim is the first that applies: ``contradicted`` if any part is; the verdict
    of a missing cell (``not implemented``, ``failed``, ``not run``, in this order), with the cell
    in the evidence; ``supported`` if all parts hold; ``undecided``.

    Args:
        paper_claims: the list under ``claims`` in ``claims.yaml``.
        documents: all documents of that paper.
        scale: the scale of the runs.
        runs_root: the folder that holds ``score/``.
        out_path: the CSV file.
        failure_of: see :data:`purifiers.report.results.FailureOf`.

    Raises:
        UserError: a claim names a cell that does not exist, or compares cells of different data
            sets or metrics.
    """
    cells = [cell for document in documents.values() for cell in document.cells]
    results = Results(runs_root, failure_of)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for claim in paper_claims:
        questions = list(_questions(claim, cells))
        parts = [_judge(question, results, claim["id"]) for question in questions]
        stand_ins = sorted(
            {stand_in(cell) for question in questions for cell in question.cells} - {""}
        )
        writer.writerow(
            {
                "id": claim["id"],
                "text": " ".join(str(claim["text"]).split()),
                "where": claim.get("where", ""),
                "verdict": _verdict([part.outcome for part in parts]),
                "evidence": _evidence(parts),
                "scale": scale.name,
                "stand_in": ", ".join(stand_ins),
            }
        )
    write_text(out_path, text.getvalue())


def _evidence(parts: Sequence[Part]) -> str:
    texts = [part.evidence for part in parts if part.evidence]
    missing: dict[str, dict[str, None]] = {}
    for reason, cell in (entry for part in parts for entry in part.missing):
        missing.setdefault(reason, {})[_name(cell)] = None
    texts += [f"{reason}: {', '.join(names)}" for reason, names in missing.items()]
    return "; ".join(dict.fromkeys(texts)) or "no cell tests this claim"


def _verdict(outcomes: Sequence[str]) -> str:
    for outcome in (CONTRADICTED, *UNANSWERED):
        if outcome in outcomes:
            return outcome
    return "supported" if outcomes and set(outcomes) == {HOLDS} else UNDECIDED


def _questions(claim: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[Question]:
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
    """Look up the cell that a reference names; keys that are not needed may be missing."""
    matches = list(cells)
    for key in KEYS:
        if key in reference:
            value = str(reference[key])
            options = {_value(cell, key) for cell in matches}
            matches = [cell for cell in matches if _value(cell, key) == value]
            if not matches:
                hint = did_you_mean(value, options)
                raise UserError(f"{where}: there is no {key} {value!r} in {dict(reference)}{hint}")
    if len(matches) > 1:
        raise UserError(
            f"{where}: {dict(reference)} matches {len(matches)} cells, not one: "
            f"add more of the keys {', '.join(KEYS)}"
        )
    return matches[0]


def _value(cell: Cell, key: str) -> str:
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
                "metric: compare cells that share both"
            )
    by_cell = [(cell, results.find(cell)) for cell in question.cells]
    missing = [(cell, runs) for cell, runs in by_cell if runs.missing]
    if missing:
        reasons = tuple(
            (", ".join(map(str, runs.flags)) or runs.missing, cell) for cell, runs in missing
        )
        verdicts = [runs.missing for _, runs in missing]
        outcome = next((name for name in UNANSWERED if name in verdicts), "not run")
        return Part(outcome, "", reasons)
    if not others:
        return _bound(first, question.by, results)
    return _compare(first, others[0], question.by, results)


def _bound(cell: Cell, at_most: float, results: Results) -> Part:
    """Test whether an accuracy is at most ``at_most`` percent."""
    if cell.metric != "accuracy":
        raise UserError(
            f"claims: at_most needs an accuracy, but {_name(cell)} has metric {cell.metric}: "
            "choose another cell"
        )
    sides = [results.find(cell).seeds]
    seeds = sorted(sides[0])
    (correct,), images = _correct((cell,), sides, seeds)
    bound = [np.full((1, len(images)), at_most / 100) for _ in seeds]
    margin = paired_difference(bound, correct)
    value, low, high = (at_most - 100 * end for end in (margin.estimate, margin.high, margin.low))
    numbers = f"{value:.1f} [{low:.1f}, {high:.1f}] %, at most {at_most:g} required"
    evidence = f"{_name(cell)}: {numbers} ({len(images)} images x {_seeds(seeds)})"
    return Part(_outcome(margin.low, margin.high), evidence)


def _compare(better: Cell, than: Cell, by: float, results: Results) -> Part:
    """Test whether one cell exceeds another by more than ``by``, on common seeds and images."""
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
    """Correctness on the images that all runs share.

    Returns:
        Per cell and seed an array (runs, images), 1 where correct; and the indices of the images.
    """
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
    """Compare a metric that has no value per image; the bootstrap resamples seeds only."""
    values = [[[run.value(better.metric) for run in side[s]] for s in seeds] for side in sides]
    if any(value is None for side in values for runs in side for value in runs):
        return Part("not run", f"{label}: not run, {better.metric} was not measured")
    sign = -1.0 if better.metric in LOWER_IS_BETTER else 1.0
    arrays = [[sign * np.array(runs, dtype=float)[:, None] for runs in side] for side in values]
    arrays = [_combined(cell, side) for cell, side in zip((better, than), arrays, strict=True)]
    result = paired_difference(*arrays)
    gain = f"{result.estimate:+.3g} [{result.low:+.3g}, {result.high:+.3g}] {better.unit}"
    # A single seed gives an interval of zero width.
    outcome = _outcome(result.low - by, result.high - by) if len(seeds) > 1 else UNDECIDED
    return Part(outcome, f"{label}: better by {gain} ({_seeds(seeds)}){_margin(by)}")


def _margin(by: float) -> str:
    return f", more than {by:+g} required" if by else ""


def _combined(cell: Cell, seeds: list[np.ndarray]) -> list[np.ndarray]:
    """Average the runs of a mean cell into one run; the bootstrap takes the lowest run."""
    return [runs.mean(axis=0, keepdims=True) for runs in seeds] if cell.mean else seeds


def _outcome(low: float, high: float) -> str:
    return HOLDS if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _name(cell: Cell) -> str:
    labels = (cell.block_label, cell.row_label, cell.column_label)
    return f"{cell.document.replace('_', ' ')} ({', '.join(label for label in labels if label)})"


def _contrast(better: Cell, than: Cell) -> str:
    """Name a comparison, shared labels last: ``"Madry + AID over Madry (SVHN, Worst)"``."""
    sides = [
        (cell.document.replace("_", " "), cell.block_label, cell.row_label, cell.column_label)
        for cell in (better, than)
    ]
    pairs = list(zip(*sides, strict=True))
    shared = [first for first, second in pairs[1:] if first == second and first]
    first_name, second_name = (
        " ".join(pair[side] for pair in pairs if pair[0] != pair[1]) for side in (0, 1)
    )
    contrast = f"{first_name} over {second_name}"
    return f"{contrast} ({', '.join(shared)})" if shared else contrast
