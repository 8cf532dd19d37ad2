"""The attacked cells of a document, and which of them show signs of a weak attack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from purifiers.core import registry
from purifiers.core.formula import evaluate
from purifiers.plan.cells import Cell, Document
from purifiers.report.layout import place
from purifiers.report.runs import Found, Runs, ScoreRun, worst
from purifiers.report.signs import NOT_PROBED, Attacked, AttackedRun, signs

ONE_GRADIENT = 3
"""Passes of one forward and one backward pass, as components state them."""

Parts = dict[tuple[str, ...], Attacked]
"""From the ids of the score runs of one attack, seed by seed, to what is known of it."""


def weak_attacks(document: Document, found: Sequence[Found], runs: Runs) -> list[str]:
    """Per cell the signs of a weak attack, joined by ``"; "``.

    A mean has the signs of all its attacks, and one that knows no model has none.
    A worst-of cell has the signs of the attack that decides it and, if that one does not take
    gradients of the model that is scored, those of the strongest one that does: an ensemble is no
    better than its adaptive part.

    Args:
        found: the runs of each cell.

    Returns:
        ``""`` where nothing is attacked, nothing is measured, or nothing speaks against the attack.
    """
    by_block = _parts(document, found, runs)
    every: Parts = {ids: part for parts in by_block.values() for ids, part in parts.items()}
    told = {}
    for block, parts in by_block.items():
        known = list({**every, **parts}.values())  # what blocks share goes by its name in this one
        told[block] = {ids: signs(part, known) for ids, part in parts.items()}
    texts = []
    for cell, there in zip(document.cells, found, strict=True):
        columns = [_ids(column) for column in _columns(there)]
        parts, signs_of = by_block[cell.block], told[cell.block]
        if len(columns) == 1:
            texts.append("; ".join(signs_of.get(columns[0], ())))
        else:
            deciding = _deciding(cell, there, columns, parts)
            texts.append(_joined({_short(parts[ids]): signs_of[ids] for ids in deciding}))
    return texts


def _joined(told: Mapping[str, Sequence[str]]) -> str:
    """The signs of several attacks in one text, each attack's after its name."""
    named = {name: [sign for sign in found if sign != NOT_PROBED] for name, found in told.items()}
    texts = [f"{name}: {', '.join(found)}" for name, found in named.items() if found]
    if any(NOT_PROBED in found for found in told.values()):
        texts.append(NOT_PROBED)
    return "; ".join(texts)


def _short(part: Attacked) -> str:
    return part.name.rsplit(" / ", 1)[-1]


def _columns(found: Found) -> list[dict[int, ScoreRun]]:
    """The runs of a cell by attack: each its runs by seed."""
    by_attack = zip(*found.seeds.values(), strict=True)
    return [dict(zip(found.seeds, column, strict=True)) for column in by_attack]


def _ids(column: Mapping[int, ScoreRun]) -> tuple[str, ...]:
    return tuple(run.id for run in column.values())


def _parts(document: Document, found: Sequence[Found], runs: Runs) -> dict[str, Parts]:
    """Every attack of each block once, named after the cell that it has to itself, if any."""
    columns = [(cell, _columns(there)) for cell, there in zip(document.cells, found, strict=True)]
    columns.sort(key=lambda entry: len(entry[1]) > 1)
    by_block: dict[str, Parts] = {cell.block: {} for cell in document.cells}
    for cell, listed in columns:
        if cell.blind:
            continue
        parts = by_block[cell.block]
        for column in listed:
            ids = _ids(column)
            if ids not in parts and all(
                run.record["spec"].get("attack") for run in column.values()
            ):
                parts[ids] = _attacked(document, cell, column, runs, len(listed) > 1)
    return by_block


def _attacked(
    document: Document, cell: Cell, column: Mapping[int, ScoreRun], runs: Runs, shared: bool
) -> Attacked:
    seeds = {seed: _run(score, runs) for seed, score in column.items()}
    first = next(iter(column.values()))
    name = place(document, cell)
    made = next((run.attack for run in seeds.values() if run.attack), None)
    return Attacked(
        name=f"{name} / {first.attack}" if shared else name,
        threat_model=cell.threat_model,
        recipe=first.record["spec"]["attack"],
        one_step=made is not None and _passes(made["attack"]) <= ONE_GRADIENT,
        stochastic=cell.stochastic,
        seeds=seeds,
    )


def _passes(attack: Mapping[str, Any]) -> float:
    """Forward passes per image that an attack takes, given its spec."""
    formula = registry.describe("attack", attack["component"]).traits.passes
    return evaluate(formula, attack["parameters"])


def _run(score: ScoreRun, runs: Runs) -> AttackedRun:
    spec = score.record["spec"]
    attack, methods = runs.origin(score)
    made: Mapping[str, Any] | None = None if attack is None else attack["spec"]
    images = {key: spec["images"].get(key) for key in ("data", "subset")}
    detector = [spec["detector"]] if "detector" in spec else []
    return AttackedRun(
        model=json.dumps([spec["classifier"], methods, images, *detector], sort_keys=True),
        attack=made,
        direct=made is not None
        and not detector
        and made["gradient"] != "none"
        and (made["classifier"], made["methods"]) == (spec["classifier"], methods),
        probe=None if attack is None else attack["summary"].get("probe"),
        scores=score.scores,
    )


def _deciding(
    cell: Cell, found: Found, listed: Sequence[tuple[str, ...]], parts: Parts
) -> list[tuple[str, ...]]:
    """Of a combined cell's attacks those whose weakness would make it an overestimate."""
    if cell.mean:
        return [ids for ids in listed if ids in parts]
    lowest = {worst(cell, runs).id for runs in found.seeds.values()}
    attacks = [ids for ids in listed if ids in parts]
    deciding = [ids for ids in attacks if lowest & set(ids)]
    direct = [ids for ids in attacks if parts[ids].direct]
    if direct and not set(deciding) & set(direct):
        deciding.append(min(direct, key=lambda ids: parts[ids].accuracy))
    return deciding
