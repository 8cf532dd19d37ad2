"""From recipes, settings, budgets and overrides to a component's final parameters."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import fraction, length_kind
from purifiers.core.registry import Description
from purifiers.core.traits import Note
from purifiers.plan.declarations import Paper
from purifiers.plan.runs import component
from purifiers.plan.scale import Scale, UsedDataset

RELATIVE: dict[str, Callable[[Any, Any], Any]] = {"at_most": min, "times": operator.mul}
"""Changes that depend on what they change."""


class NotImplementedHere(Exception):
    """A cell needs something the suite does not have yet; its text names it."""


@dataclass(frozen=True)
class Setting:
    """A cell's declaration with everything needed to resolve it."""

    paper: Paper
    scale: Scale
    where: str
    cell: dict[str, Any]
    used: UsedDataset

    def recipe(self, kind: str, name: str) -> dict[str, Any]:
        """A recipe as a component spec: settings filled in, budgets and overrides applied.

        A change may be relative to what it changes: ``{at_most: n}`` lowers it and never raises
        it, ``{times: n}`` multiplies it.

        Raises:
            UserError: unknown recipe, parameter or setting, a length out of range, or an override
                that would undo what the scale says.
        """
        where = f"{self.where}: {kind}.{name}"
        declared = self.paper.recipe(kind, name, self.where)
        component_name = declared.pop("component")
        if not registry.exists(kind, component_name):
            raise NotImplementedHere(f"{kind} {component_name} is not implemented")
        described = registry.describe(kind, component_name)
        override = self.cell.get("override", {}).get(f"{kind}.{name}", {})
        budget = self.scale.budget(kind, component_name, self.used)
        parameters = {**declared, **budget, **override}
        described.check_parameters(parameters, where)
        for key in set(budget) & set(override):
            if not isinstance(budget[key], dict) and not isinstance(override[key], dict):
                raise UserError(
                    f"{where}: the override says {key} {override[key]}, scale {self.scale.name} "
                    f"{budget[key]}: write {{times: n}} for n times what the scale says"
                )
        settings = (
            self.paper.settings(self.used.name)
            if _has_reference([*declared.values(), *parameters.values()])
            else {}
        )
        resolved = {}
        for key in parameters:
            value = described.parameters[key]
            for layer in (declared, budget, override):
                if key in layer:
                    value = _changed(described, key, value, layer[key], settings, where)
            resolved[key] = described.checked(key, value, where)
        return component(kind, component_name, resolved)


def notes_on(spec: dict[str, Any], notes: Iterable[Note]) -> list[str]:
    """The notes that apply to a component's parameters, as sentences."""
    texts = (note.applies(spec["parameters"]) for note in notes)
    return [text for text in texts if text is not None]


def _has_reference(parameters: Iterable[Any]) -> bool:
    return any(isinstance(value, str) and value.startswith("$") for value in parameters)


def _changed(
    described: Description,
    parameter: str,
    value: Any,
    to: Any,
    settings: dict[str, Any],
    where: str,
) -> Any:
    """A parameter's value after one layer of changes."""
    is_length = bool(length_kind(described.types[parameter]))
    if isinstance(to, dict) and len(to) == 1 and set(to) <= set(RELATIVE):
        ((how, amount),) = to.items()
        value = _number(_resolved(value, settings, where), is_length, f"{where}: {parameter}")
        amount = _number(_resolved(amount, settings, where), False, f"{where}: {how}")
        if not all(type(operand) in (int, float) for operand in (value, amount)):
            raise UserError(f"{where}: {parameter}: {how} is {amount!r}, of {value!r}: not numbers")
        return RELATIVE[how](value, amount)
    return _resolved(to, settings, where)


def _number(value: Any, is_length: bool, where: str) -> Any:
    return fraction(value, where) if is_length and value is not None else value


def _resolved(value: Any, settings: dict[str, Any], where: str) -> Any:
    """A value, or the setting that ``$name`` refers to."""
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    if value[1:] not in settings:
        raise UserError(
            f"{where}: settings has no {value[1:]!r}{did_you_mean(value[1:], settings)}"
        )
    return settings[value[1:]]


def merge(*fragments: dict[str, Any]) -> dict[str, Any]:
    """Later fragments win; ``override`` and ``flags`` add up."""
    merged: dict[str, Any] = {}
    for fragment in fragments:
        for key, value in fragment.items():
            if key == "override":
                known = merged.get("override", {})
                names = [*known, *(name for name in value if name not in known)]
                merged["override"] = {n: {**known.get(n, {}), **value.get(n, {})} for n in names}
            elif key == "flags":
                merged["flags"] = [*merged.get("flags", []), *value]
            else:
                merged[key] = value
    return merged
