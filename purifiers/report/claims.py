"""Test a paper's claims over the cells that should support them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from purifiers.core.artifacts import short_hash
from purifiers.core.errors import UserError
from purifiers.core.recorded_csv import write_recorded
from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.aggregate import stand_in
from purifiers.report.bootstrap import paired_difference
from purifiers.report.claim_parts import Question, contrast, name_of, questions_of
from purifiers.report.earlier import read_rows
from purifiers.report.results import COUNTED, LENGTHS, FailureOf, Results
from purifiers.report.shared_images import column_of, combined, on_shared_images

COLUMNS = ("id", "text", "where", "verdict", "evidence", "scale", "stand_in", "identity")

UNANSWERED = ("not implemented", "failed", "not run")
"""Verdicts of cells without a number, in the order of precedence for a claim."""

LOWER_IS_BETTER = (
    *("seconds_per_image", "seconds_per_image_batched", "train_minutes"),
    *("mean_l2", "mean_linf"),
)
"""Metrics for which lower values are better."""

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"


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
    """Test each claim and write ``out_path``, a CSV with the columns ``COLUMNS``, and its digest.

    A claim's ``decide`` lists parts of three forms:

    - ``{better: cell, than: cell, by: points}``: the first cell exceeds the second by more than
      ``by`` (default 0; negative: it is at most that far below). Two such parts with the cells
      exchanged mean that the cells are the same within a margin. With ``times: factor`` the first
      cell exceeds the second by more than that factor. A list of cells stands for their mean.
    - ``{better: cell, better_than_all: [cells], by: points}``: the same against each of the cells.
    - ``{at_most: percent, of: cell}`` or ``at_least``: an accuracy does not pass a bound.

    A part holds when the 95 % interval of the paired difference lies above ``by``, or that of the
    accuracy on the right side of its bound. It is contradicted when the interval lies on the
    other side, else undecided. Intervals are over images and seeds for accuracies and means of
    lengths, else over seeds only; one seed then decides nothing. ``each`` repeats a part, see
    :func:`purifiers.report.claim_parts.parts_of`.

    The verdict of a claim is the first that applies: ``contradicted`` if any part is; the verdict
    of a missing cell (``not implemented``, ``failed``, ``not run``, in this order), with the cell
    in the evidence; ``supported`` if all parts hold; ``undecided``. A claim that is not run keeps
    its line in an existing file if that was decided by the same runs.

    Args:
        paper_claims: the list under ``claims`` in ``claims.yaml``.
        documents: all documents of that paper.
        scale: the scale of the runs.
        runs_root: the folder that holds ``score/``.
        out_path: the CSV file.
        failure_of: see :data:`purifiers.report.results.FailureOf`.

    Raises:
        UserError: a claim names a cell that does not exist, or compares cells of different data
            sets or metrics; or a line of a damaged file would be kept.
    """
    cells = [cell for document in documents.values() for cell in document.cells]
    results = Results(runs_root, failure_of)
    rows, missing = [], []
    for claim in paper_claims:
        questions = list(questions_of(claim, cells))
        parts = [_judge(question, results) for question in questions]
        stand_ins = sorted(
            {stand_in(cell) for question in questions for cell in question.cells} - {""}
        )
        rows.append(
            {
                "id": claim["id"],
                "text": " ".join(str(claim["text"]).split()),
                "where": claim.get("where", ""),
                "verdict": _verdict([part.outcome for part in parts]),
                "evidence": _evidence(parts),
                "scale": scale.name,
                "stand_in": ", ".join(stand_ins),
                "identity": _identity(claim, questions),
            }
        )
        if rows[-1]["verdict"] == "not run" and any(part.missing for part in parts):
            missing.append(len(rows) - 1)
    if missing:
        earlier = {(row["id"], row["identity"]): row for row in read_rows(out_path, COLUMNS)}
        for place in missing:
            row = rows[place]
            rows[place] = earlier.get((row["id"], row["identity"]), row)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_recorded(out_path, text.getvalue(), {})


def _identity(claim: Mapping[str, Any], questions: Sequence[Question]) -> str:
    """Digest of a claim's comparisons and of all runs that decide it."""
    cells = [cell.identity for question in questions for cell in question.cells]
    return short_hash([claim.get("decide"), cells])


def _evidence(parts: Sequence[Part]) -> str:
    texts = [part.evidence for part in parts if part.evidence]
    missing: dict[str, dict[str, None]] = {}
    for reason, cell in (entry for part in parts for entry in part.missing):
        missing.setdefault(reason, {})[name_of(cell)] = None
    texts += [f"{reason}: {', '.join(names)}" for reason, names in missing.items()]
    return "; ".join(dict.fromkeys(texts)) or "no cell tests this claim"


def _verdict(outcomes: Sequence[str]) -> str:
    for outcome in (CONTRADICTED, *UNANSWERED):
        if outcome in outcomes:
            return outcome
    return "supported" if outcomes and set(outcomes) == {HOLDS} else UNDECIDED


def _judge(question: Question, results: Results) -> Part:
    by_cell = [(cell, results.find(cell)) for cell in question.cells]
    missing = [(cell, runs) for cell, runs in by_cell if runs.missing]
    if missing:
        reasons = tuple(
            (", ".join(map(str, runs.flags)) or runs.missing, cell) for cell, runs in missing
        )
        verdicts = [runs.missing for _, runs in missing]
        outcome = next((name for name in UNANSWERED if name in verdicts), "not run")
        return Part(outcome, "", reasons)
    return _bound(question, results) if question.bound else _compare(question, results)


def _bound(question: Question, results: Results) -> Part:
    """Test whether an accuracy lies on one side of a bound in percent."""
    (cell,) = question.better
    if cell.metric not in COUNTED:
        raise UserError(
            f"claims: {question.bound} needs an accuracy, but {name_of(cell)} has metric "
            f"{cell.metric}: choose another cell"
        )
    runs = [results.find(cell).seeds]
    seeds = sorted(runs[0])
    (correct,), images = on_shared_images((cell,), runs, seeds)
    bound = [np.full((1, len(images)), question.by / 100) for _ in seeds]
    above = paired_difference(correct, bound)
    value, low, high = (question.by + 100 * end for end in (above.estimate, above.low, above.high))
    required = f"{question.bound.replace('_', ' ')} {question.by:g} required"
    numbers = f"{value:.1f} [{low:.1f}, {high:.1f}] %, {required}"
    evidence = f"{name_of(cell)}: {numbers} ({len(images)} images x {_seeds(seeds)})"
    if question.bound == "at_least":
        return Part(_outcome(above.low, above.high), evidence)
    return Part(_outcome(-above.high, -above.low), evidence)


def _compare(question: Question, results: Results) -> Part:
    """Test whether one side exceeds another by a margin, on common seeds and images."""
    by_cell = [results.find(cell).seeds for cell in question.cells]
    seeds = sorted(set.intersection(*map(set, by_cell)))
    metric, lower = question.better[0].metric, question.better[0].metric in LOWER_IS_BETTER
    # a factor of times as good: a higher accuracy, or a lower time
    factors = (question.times, 1.0) if lower else (1.0, question.times)
    label = contrast(question, factors)
    if not seeds:
        return Part("not run", f"{label}: not run, the two sides have no seed in common")
    better, than = ({cell.identity for cell in side} for side in (question.better, question.than))
    if better == than:  # such as 15 and 30 draws where the scale runs 5
        return Part("not run", f"{label}: not run, at this scale both sides are the same runs")
    if metric not in (*COUNTED, *LENGTHS):
        return _compare_values(question, by_cell, seeds, label, factors)
    for cell, runs in zip(question.cells, by_cell, strict=True):
        if any(column_of(cell) not in run.scores for seed in seeds for run in runs[seed]):
            return Part("not run", f"{label}: not run, {cell.metric} was not measured")
    per_cell, images = on_shared_images(question.cells, by_cell, seeds)
    if images.empty:
        return Part("not run", f"{label}: not run, the two sides have no image in common")
    if metric in LENGTHS:
        return _better_by(question, per_cell, factors, label, f"{len(images)} images x ", seeds)
    result = paired_difference(*_sides(question, per_cell, factors))
    numbers = f"{100 * result.estimate:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}] pp"
    evidence = f"{label}: {numbers} ({len(images)} images x {_seeds(seeds)}){_margin(question.by)}"
    return Part(_outcome(100 * result.low - question.by, 100 * result.high - question.by), evidence)


def _sides(
    question: Question, per_cell: list[list[np.ndarray]], factors: tuple[float, float]
) -> list[list[np.ndarray]]:
    """Average the cells of each side and apply its factor; per seed an array (runs, images)."""
    split = len(question.better)
    sides: list[list[np.ndarray]] = []
    for cells, factor in zip((per_cell[:split], per_cell[split:]), factors, strict=True):
        sides.append([factor * np.mean(arrays, axis=0) for arrays in zip(*cells, strict=True)])
    return sides


def _compare_values(
    question: Question,
    by_cell: list[Any],
    seeds: list[int],
    label: str,
    factors: tuple[float, float],
) -> Part:
    """Compare a metric without a value of each image; the bootstrap resamples seeds only."""
    first = question.better[0]
    values = [[[run.value(first.metric) for run in runs[s]] for s in seeds] for runs in by_cell]
    if any(value is None for runs in values for seed in runs for value in seed):
        return Part("not run", f"{label}: not run, {first.metric} was not measured")
    arrays = [[np.array(seed, dtype=float)[:, None] for seed in runs] for runs in values]
    per_cell = [combined(cell, runs) for cell, runs in zip(question.cells, arrays, strict=True)]
    part = _better_by(question, per_cell, factors, label, "", seeds)
    # a single seed gives an interval of zero width
    return part if len(seeds) > 1 else replace(part, outcome=UNDECIDED)


def _better_by(
    question: Question,
    per_cell: list[list[np.ndarray]],
    factors: tuple[float, float],
    label: str,
    images: str,
    seeds: list[int],
) -> Part:
    """Compare two sides in the metric's own unit."""
    first, by = question.better[0], question.by
    sign = -1.0 if first.metric in LOWER_IS_BETTER else 1.0
    signed = [[sign * runs for runs in cell] for cell in per_cell]
    result = paired_difference(*_sides(question, signed, factors))
    gain = f"{result.estimate:+.3g} [{result.low:+.3g}, {result.high:+.3g}] {first.unit}"
    evidence = f"{label}: better by {gain} ({images}{_seeds(seeds)}){_margin(by)}"
    return Part(_outcome(result.low - by, result.high - by), evidence)


def _margin(by: float) -> str:
    return f", more than {by:+g} required" if by else ""


def _outcome(low: float, high: float) -> str:
    return HOLDS if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
