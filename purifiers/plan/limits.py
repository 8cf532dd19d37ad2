"""Limits that a scale sets on cells: draws, EOT samples, attack steps, values behind a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifiers.plan.score_runs import SMOOTHING


def limited_document(content: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A document's declaration with ``limits`` applied to its defaults and to every cell.

    Args:
        content: the declaration of a table or figure, or of a block, row or column.
        limits: a scale's ``limits``.
    """
    changed: dict[str, Any] = {**content}
    for part in ("defaults", "cell"):
        if part in content:
            changed[part] = limited(content[part], limits)
    for axis in ("rows", "columns", "blocks"):
        if content.get(axis):
            changed[axis] = [limited_document(entry, limits) for entry in content[axis]]
    return changed


def limited(cell: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's declaration with ``limits`` applied.

    Args:
        cell: any part of a cell's declaration.
        limits: largest number of ``draws``, ``eot_samples``, values of ``mean_over`` and ``steps``
            of an attack that a cell overrides; and the number of ``votes`` that estimate a
            probability in randomised smoothing. At most as many votes choose the class.
    """
    changed = {**cell}
    if "draws" in cell and "draws" in limits:
        changed["draws"] = min(cell["draws"], limits["draws"])
    if "eot" in cell and "eot_samples" in limits:
        eot = cell["eot"]
        if isinstance(eot, int):
            changed["eot"] = min(eot, limits["eot_samples"])
        else:
            changed["eot"] = {**eot, "samples": min(eot["samples"], limits["eot_samples"])}
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


def _fewer_steps(parameters: Mapping[str, Any], at_most: int) -> dict[str, Any]:
    given = parameters.get("steps")
    too_many = isinstance(given, int | float) and given > at_most
    return {**parameters, "steps": at_most} if too_many else {**parameters}


def spread(values: Sequence[Any], at_most: int) -> list[Any]:
    """At most ``at_most`` of the values, evenly spread: the middles of as many equal parts."""
    if len(values) <= at_most:
        return list(values)
    return [values[int((part + 0.5) * len(values) / at_most)] for part in range(at_most)]
