"""Collect the attacks of a document and find the cells with signs of a weak attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from purifiers.core import registry
from purifiers.core.spec import AttackSpec, ComponentSpec, ScoreSpec
from purifiers.plan.cells import Cell, Document
from purifiers.plan.cost import passes
from purifiers.report.layout import place
from purifiers.report.results import CellRuns, Results, ScoreRun, worst
from purifiers.report.signs import NOT_PROBED, Attacked, AttackedRun, Scored, Signs, signs

ONE_GRADIENT = 3
"""Cost of one forward and one backward pass, in forward passes, as in the components' traits."""

Parts = dict[tuple[str, ...], Attacked]
"""Attacks by the ids of their score runs, one per seed."""


@dataclass(frozen=True)
class Weakness:
    """The signs that a cell's attack is weak.

    Attributes:
        text: the signs, joined by ``"; "``, with ``NOT_PROBED`` where gradients and losses were not
            recorded.
        suspicious: whether there is a sign; ``NOT_PROBED`` is not a sign.
    """

    text: str = ""
    suspicious: bool = False


def weak_attacks(
    document: Document, cell_runs: Sequence[CellRuns], results: Results
) -> list[Weakness]:
    """Find the signs of a weak attack in each cell.

    A mean has the signs of all its attacks. An attack that queries no model has no signs. A
    worst-of cell has the signs of the attack with the lowest accuracy. If that attack takes no
    gradients of the scored model, the signs of the strongest attack that does are added, because
    an ensemble of attacks is only as adaptive as that one.

    Args:
        cell_runs: the runs of each cell.

    Returns:
        One entry per cell, in the document's order.
    """
    by_block = _parts(document, cell_runs, results)
    every: Parts = {ids: part for parts in by_block.values() for ids, part in parts.items()}
    signs_by_block: dict[str, dict[tuple[str, ...], Signs]] = {}
    for block, parts in by_block.items():
        others = list({**every, **parts}.values())  # shared attacks keep their name in this block
        signs_by_block[block] = {ids: signs(part, others) for ids, part in parts.items()}
    weaknesses = []
    for cell, runs in zip(document.cells, cell_runs, strict=True):
        columns = [_ids(column) for column in _columns(runs)]
        parts, signs_of = by_block[cell.block], signs_by_block[cell.block]
        if len(columns) == 1:
            weaknesses.append(_weakness({"": signs_of.get(columns[0], Signs())}))
        else:
            deciding = _deciding(cell, runs, columns, parts)
            weaknesses.append(_weakness({_short(parts[ids]): signs_of[ids] for ids in deciding}))
    return weaknesses


def _weakness(by_attack: Mapping[str, Signs]) -> Weakness:
    """Join the signs of one or several attacks; with several, each after the attack's name."""
    texts = []
    for name, listed in by_attack.items():
        if listed.texts:
            texts.append(f"{name}: {', '.join(listed.texts)}" if name else "; ".join(listed.texts))
    suspicious = bool(texts)
    if not all(listed.probed for listed in by_attack.values()):
        texts.append(NOT_PROBED)
    return Weakness("; ".join(texts), suspicious)


def _short(part: Attacked) -> str:
    return part.name.rsplit(" / ", 1)[-1]


def _columns(runs: CellRuns) -> list[dict[int, ScoreRun]]:
    """Split the runs of a cell by attack: one mapping from seed to run per attack."""
    by_attack = zip(*runs.seeds.values(), strict=True)
    return [dict(zip(runs.seeds, column, strict=True)) for column in by_attack]


def _ids(column: Mapping[int, ScoreRun]) -> tuple[str, ...]:
    return tuple(run.id for run in column.values())


def _parts(document: Document, cell_runs: Sequence[CellRuns], results: Results) -> dict[str, Parts]:
    """Describe each attack of each block once, named after its own cell where it has one."""
    columns = [(cell, _columns(runs)) for cell, runs in zip(document.cells, cell_runs, strict=True)]
    columns.sort(key=lambda entry: len(entry[1]) > 1)
    by_block: dict[str, Parts] = {cell.block: {} for cell in document.cells}
    for cell, listed in columns:
        if cell.model_free:
            continue
        parts = by_block[cell.block]
        for column in listed:
            ids = _ids(column)
            if ids not in parts and all(_attack_of(run) for run in column.values()):
                parts[ids] = _attacked(document, cell, column, results, len(listed) > 1)
    return by_block


def _attacked(
    document: Document, cell: Cell, column: Mapping[int, ScoreRun], results: Results, shared: bool
) -> Attacked:
    seeds = {seed: _run(score, results) for seed, score in column.items()}
    first = next(iter(column.values()))
    recipe = _attack_of(first)
    assert recipe is not None
    name = place(document, cell)
    attack_spec = next((run.attack for run in seeds.values() if run.attack), None)
    return Attacked(
        name=f"{name} / {first.attack}" if shared else name,
        threat_model=cell.threat_model,
        recipe=recipe,
        one_step=attack_spec is not None and 0 < _passes(attack_spec.attack) <= ONE_GRADIENT,
        stochastic=cell.stochastic,
        seeds=seeds,
    )


def _attack_of(run: ScoreRun) -> ComponentSpec | None:
    spec = run.record.spec
    return spec.attack if isinstance(spec, ScoreSpec) else None


def _passes(attack: ComponentSpec) -> float:
    """Cost of an attack in forward passes per image."""
    formula = registry.attack_traits(attack.component).passes
    return passes("attack", formula, attack)


def _run(score: ScoreRun, results: Results) -> AttackedRun:
    spec = score.record.spec_as(ScoreSpec)
    record, methods = results.origin(score)
    attack = None if record is None else record.spec_as(AttackSpec)
    return AttackedRun(
        model=Scored(
            spec.classifier,
            methods,
            spec.images.data,
            spec.images.subset,
            spec.detector,
            (spec.draws, spec.combine_draws, spec.all_steps),
        ),
        attack=attack,
        direct=attack is not None
        and spec.detector is None
        and attack.gradient != "none"
        and _passes(attack.attack) > 0  # a stored set takes no gradient
        and (attack.classifier, attack.methods) == (spec.classifier, methods),
        probe=None if record is None else record.summary.get("probe"),
        scores=score.scores,
    )


def _deciding(
    cell: Cell, cell_runs: CellRuns, listed: Sequence[tuple[str, ...]], parts: Parts
) -> list[tuple[str, ...]]:
    """Attacks of a combined cell whose weakness would make the cell overstate robustness."""
    if cell.mean:
        return [ids for ids in listed if ids in parts]
    lowest = {worst(cell, runs).id for runs in cell_runs.seeds.values()}
    attacks = [ids for ids in listed if ids in parts]
    deciding = [ids for ids in attacks if lowest & set(ids)]
    direct = [ids for ids in attacks if parts[ids].direct]
    if direct and not set(deciding) & set(direct):
        deciding.append(min(direct, key=lambda ids: parts[ids].accuracy))
    return deciding
