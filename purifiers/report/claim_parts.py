"""Read a claim's comparisons and look up the cells that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.cells import Cell

KEYS = ("table", "figure", "block", "row", "column")
"""Keys that name a cell."""

BOUNDS = ("at_most", "at_least")
"""Keys of a part that bounds one accuracy."""

QUANTITY = {
    "purified_score_norm": "score_norm",
    "purified_distance": "attacked_distance",
    "smoothed_prediction": "smoothed_accuracy",
}
"""Metric to another one that a comparison may set it against."""

Side = tuple[Cell, ...]
"""One side of a comparison: a cell, or several whose mean counts."""


@dataclass(frozen=True)
class Question:
    """A comparison of two sides, or a bound on one cell.

    Attributes:
        better: the side that a claim calls better, or the bounded cell.
        than: the other side; empty for a bound.
        by: margin or bound in the cells' unit; percentage points for accuracies.
        times: factor by which ``better`` exceeds ``than``.
        bound: a key of ``BOUNDS``; empty for a comparison.
    """

    better: Side
    than: Side = ()
    by: float = 0.0
    times: float = 1.0
    bound: str = ""

    @property
    def cells(self) -> Side:
        """The cells of both sides."""
        return (*self.better, *self.than)


def parts_of(claim: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a claim's ``decide``, with ``each`` and ``better_than_all`` unfolded.

    A part with ``each: {column: [fgsm, pgd], block: [mnist]}`` is repeated for every combination of
    the values. They are added to each of its references that does not name that key itself.

    Args:
        claim: an entry of ``claims.yaml``.
    """
    for declared in claim.get("decide", ()):
        each = declared.get("each", {})
        for values in product(*each.values()):
            keys = dict(zip(each, values, strict=True))
            part = {key: _filled(value, keys) for key, value in declared.items() if key != "each"}
            for other in part.pop("better_than_all", [None]):
                yield part if other is None else {**part, "than": other}


def _filled(value: Any, keys: Mapping[str, str]) -> Any:
    """Add keys to a reference, or to each reference of a list."""
    if isinstance(value, list):
        return [_filled(entry, keys) for entry in value]
    return {**keys, **value} if isinstance(value, Mapping) else value


def questions_of(claim: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[Question]:
    """Yield the comparisons and bounds of a claim.

    Args:
        claim: an entry of ``claims.yaml``.
        cells: all cells of the paper.

    Raises:
        UserError: a reference names no cell or several, or the sides of a comparison differ in
            data set or metric.
    """
    where = f"claim {claim['id']!r}"
    for part in parts_of(claim):
        bound = next((key for key in BOUNDS if key in part), "")
        if bound:
            cell = _cell(part["of"], cells, where)
            yield Question((cell,), by=float(part[bound]), bound=bound)
            continue
        better, than = (_side(part[key], cells, where) for key in ("better", "than"))
        question = Question(better, than, float(part.get("by", 0)), float(part.get("times", 1)))
        _check_alike(question, where)
        yield question


def _side(
    reference: Mapping[str, Any] | Sequence[Mapping[str, Any]], cells: Sequence[Cell], where: str
) -> Side:
    references = [reference] if isinstance(reference, Mapping) else reference
    return tuple(_cell(entry, cells, where) for entry in references)


def _check_alike(question: Question, where: str) -> None:
    first, *others = question.cells
    for other in others:
        if (first.dataset, _quantity(first)) != (other.dataset, _quantity(other)):
            raise UserError(
                f"{where}: {name_of(first)} and {name_of(other)} differ in data set or metric: "
                "compare cells that share both"
            )
    for side in (question.better, question.than):
        for cell in side:
            if len(side) > 1 and cell.combine is not None and cell.combine.how == "worst":
                raise UserError(
                    f"{where}: a mean over cells includes {name_of(cell)}, which is a minimum "
                    "over several attacks: name the attacks' own cells"
                )


def _quantity(cell: Cell) -> str:
    return QUANTITY.get(cell.metric, cell.metric)


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


def name_of(cell: Cell) -> str:
    """A cell's document and labels: ``"table 3 (SVHN, Madry, PGD)"``."""
    labels = (cell.block_label, cell.row_label, cell.column_label)
    return f"{cell.document.replace('_', ' ')} ({', '.join(label for label in labels if label)})"


def side_name(side: Side) -> str:
    """A side's cell, or the number of its cells with the first and the last."""
    if len(side) == 1:
        return name_of(side[0])
    return f"mean of {len(side)} cells from {name_of(side[0])} to {name_of(side[-1])}"


def contrast(question: Question, factors: tuple[float, float] = (1.0, 1.0)) -> str:
    """Name a comparison, shared labels last: ``"Madry + AID over Madry (SVHN, Worst)"``.

    Args:
        question: the comparison.
        factors: of the two sides; a factor other than 1 is part of the name.
    """
    better, than = question.better, question.than
    if len(better) > 1 or len(than) > 1:
        first, second = side_name(better), side_name(than)
        shared: list[str] = []
    else:
        labels = [
            (cell.document.replace("_", " "), cell.block_label, cell.row_label, cell.column_label)
            for cell in (better[0], than[0])
        ]
        pairs = list(zip(*labels, strict=True))
        shared = [one for one, other in pairs[1:] if one == other and one]
        first, second = (
            " ".join(pair[side] for pair in pairs if pair[0] != pair[1]) for side in (0, 1)
        )
    first, second = (
        name if factor == 1 else f"{factor:g} x {name}"
        for name, factor in zip((first, second), factors, strict=True)
    )
    name = f"{first} over {second}"
    return f"{name} ({', '.join(shared)})" if shared else name
