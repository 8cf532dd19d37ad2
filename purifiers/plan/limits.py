"""Limits that a scale sets on cells: draws, EOT samples, attack steps, values behind a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifiers.plan.cells import Lowered
from purifiers.plan.score_runs import SMOOTHING
from purifiers.plan.threats import eot_samples


def limited(cell: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's declaration with ``limits`` applied.

    Args:
        cell: a cell's whole declaration.
        limits: largest number of ``draws``, ``eot_samples``, values of ``mean_over`` and ``steps``
            of an attack that a cell overrides; and the number of ``votes`` that estimate a
            probability in randomised smoothing. At most as many votes choose the class.
    """
    changed = {**cell}
    if "draws" in cell and "draws" in limits:
        changed["draws"] = min(cell["draws"], limits["draws"])
    if "eot" in cell and "eot_samples" in limits:
        samples = min(eot_samples(cell), limits["eot_samples"])
        declared = cell["eot"]
        changed["eot"] = samples if isinstance(declared, int) else {**declared, "samples": samples}
    if "smoothing" in cell and "votes" in limits:
        smoothing, votes = {**SMOOTHING, **cell["smoothing"]}, limits["votes"]
        selection = min(smoothing["selection"], votes)
        changed["smoothing"] = {**smoothing, "selection": selection, "estimation": votes}
    if "override" in cell and "steps" in limits:
        changed["override"] = {
            component: _fewer_steps(values, limits["steps"])
            if component.startswith("attack.")
            else values
            for component, values in cell["override"].items()
        }
    if "mean_over" in cell and "mean_over" in limits:
        ((parameter, values),) = cell["mean_over"].items()
        changed["mean_over"] = {parameter: spread(values, limits["mean_over"])}
    return changed


def lowered(cell: Mapping[str, Any], by: Mapping[str, Any]) -> tuple[Lowered, ...]:
    """What a scale's limits took from a cell.

    Args:
        cell: the cell's declaration.
        by: the same, limited.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("draws", cell.get("draws"), by.get("draws")),
        ("EOT samples", eot_samples(cell), eot_samples(by)),
    ]
    if "smoothing" in cell:
        before, after = ({**SMOOTHING, **part["smoothing"]}["estimation"] for part in (cell, by))
        pairs.append(("votes", before, after))
    for component, parameters in cell.get("override", {}).items():
        steps = parameters.get("steps")
        pairs.append(("attack steps", steps, by["override"][component].get("steps")))
    for parameter, values in cell.get("mean_over", {}).items():
        pairs.append((f"values of {parameter}", len(values), len(by["mean_over"][parameter])))
    return tuple(Lowered(name, before, after) for name, before, after in pairs if before != after)


def _fewer_steps(parameters: Mapping[str, Any], at_most: int) -> dict[str, Any]:
    given = parameters.get("steps")
    too_many = isinstance(given, int | float) and given > at_most
    return {**parameters, "steps": at_most} if too_many else {**parameters}


def spread(values: Sequence[Any], at_most: int) -> list[Any]:
    """At most ``at_most`` of the values, evenly spread: the middles of as many equal parts."""
    if len(values) <= at_most:
        return list(values)
    return [values[int((part + 0.5) * len(values) / at_most)] for part in range(at_most)]
