"""From recipes, settings, budgets and overrides to a component's final parameters."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import check_linf_length, fraction, is_fraction, is_linf_length
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
                    value = _changed(key, value, layer[key], settings, where)
            resolved[key] = described.checked(key, value, where)
        return component(kind, component_name, resolved)


def told(kind: str, spec: dict[str, Any], constant: str) -> list[str]:
    """What a component says of its parameters: ``REFUSED``, why it cannot be had with them, or
    ``REMARKS``, what its readers must know. Both list pairs of parameters with their values and of
    a sentence, in which a parameter may stand in braces."""
    said = registry.describe(kind, spec["component"]).constants.get(constant, ())
    given = spec["parameters"]
    return [
        sentence.format(**given)
        for values, sentence in said
        if all(given[name] in known for name, known in values.items())
    ]


def _has_reference(parameters: Iterable[Any]) -> bool:
    return any(isinstance(value, str) and value.startswith("$") for value in parameters)


def _changed(parameter: str, value: Any, to: Any, settings: dict[str, Any], where: str) -> Any:
    if isinstance(to, dict) and len(to) == 1 and set(to) <= set(RELATIVE):
        ((how, number),) = to.items()
        value = _resolve(parameter, value, settings, where)
        number = _resolve(how, number, settings, where)
        if not all(type(operand) in (int, float) for operand in (value, number)):
            raise UserError(f"{where}: {parameter}: {how} is {number!r}, of {value!r}: not numbers")
        to = RELATIVE[how](value, number)
    return _resolve(parameter, to, settings, where)


def _resolve(parameter: str, value: Any, settings: dict[str, Any], where: str) -> Any:
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in settings:
            raise UserError(
                f"{where}: settings has no {value[1:]!r}{did_you_mean(value[1:], settings)}"
            )
        value = settings[value[1:]]
    if is_fraction(value):
        value = fraction(value)
    if is_linf_length(parameter) and value is not None:
        value = fraction(value)
        check_linf_length(parameter, value, where)
    return value


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
