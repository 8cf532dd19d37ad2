"""Resolve a component's parameters from recipe, settings, budget and override."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import fraction, length_kind
from purifiers.core.registry import Description
from purifiers.core.spec import ComponentSpec
from purifiers.core.traits import Note
from purifiers.plan.declarations import Paper
from purifiers.plan.graph import component_spec
from purifiers.plan.scale import Scale, UsedDataset

RELATIVE: dict[str, Callable[[Any, Any], Any]] = {"at_most": min, "times": operator.mul}
"""Relative changes of a parameter, by their key."""


class NotImplementedHere(Exception):
    """A cell needs something that is not implemented; the message is printed as its reason."""


@dataclass(frozen=True)
class Setting:
    """A cell's declaration with everything needed to resolve its recipes.

    Attributes:
        paper: the paper's declarations.
        scale: the scale.
        where: file and cell, for error messages.
        cell: the merged declaration of the cell.
        used: the data set at this scale.
        resolved: the recipes resolved so far; cells of one plan share it.
    """

    paper: Paper
    scale: Scale
    where: str
    cell: dict[str, Any]
    used: UsedDataset
    resolved: dict[tuple[str, ...], ComponentSpec] = field(default_factory=dict, compare=False)

    def key(self, *parts: Any) -> tuple[str, ...]:
        """Key of what depends on paper, data set and ``parts`` alone."""
        return (str(self.paper.folder), self.cell["dataset"], repr(parts))

    def recipe(self, kind: str, name: str) -> ComponentSpec:
        """Resolve a recipe to a component spec, with settings, budget and override applied.

        A change may be relative to the value before it: ``{at_most: n}`` is an upper limit,
        ``{times: n}`` multiplies.

        Raises:
            UserError: an unknown recipe, parameter or setting, a number out of range, or an
                override of a parameter that the scale's budget sets.
            NotImplementedHere: the recipe's component does not exist.
        """
        override = self.cell.get("override", {}).get(f"{kind}.{name}", {})
        key = self.key(kind, name, override)
        if key not in self.resolved:
            self.resolved[key] = self._resolve(kind, name, override)
        return self.resolved[key]

    def _resolve(self, kind: str, name: str, override: dict[str, Any]) -> ComponentSpec:
        where = f"{self.where}: {kind}.{name}"
        declared = self.paper.recipe(kind, name, self.where)
        component_name = declared.pop("component")
        if not registry.exists(kind, component_name):
            raise NotImplementedHere(f"{kind} {component_name} is not implemented")
        described = registry.describe(kind, component_name)
        budget = self.scale.budget(kind, component_name, self.used, self.paper.id)
        parameters = {**declared, **budget, **override}
        described.check_parameters(parameters, where)
        for key in set(budget) & set(override) - {"precision"}:  # which is no size
            if not isinstance(budget[key], dict) and not isinstance(override[key], dict):
                raise UserError(
                    f"{where}: the override sets {key} to {override[key]}, but scale "
                    f"{self.scale.name} sets it to {budget[key]}: write {{times: n}} for n times "
                    "the scale's value"
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
        described.check_rules(resolved, where)
        return component_spec(kind, component_name, resolved, where)


def notes_on(spec: ComponentSpec, notes: Iterable[Note]) -> list[str]:
    """Texts of the notes that apply to a component's parameters."""
    texts = (note.applies(spec.parameters) for note in notes)
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
    """Apply one layer of changes to a parameter's value."""
    if isinstance(to, dict) and len(to) == 1 and set(to) <= set(RELATIVE):
        ((how, amount),) = to.items()
        value, amount = (_resolved(operand, settings, where) for operand in (value, amount))
        if value is not None and length_kind(described.types[parameter]):
            value = fraction(value, f"{where}: {parameter}")
        if not all(type(x) in (int, float) and math.isfinite(x) for x in (value, amount)):
            raise UserError(
                f"{where}: {parameter}: {how} is {amount!r} and applies to {value!r}: "
                "both must be finite numbers"
            )
        return RELATIVE[how](value, amount)
    return _resolved(to, settings, where)


def _resolved(value: Any, settings: dict[str, Any], where: str) -> Any:
    """Replace ``$name`` by its setting; return any other value unchanged."""
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    if value[1:] not in settings:
        raise UserError(
            f"{where}: settings has no {value[1:]!r}{did_you_mean(value[1:], settings)}"
        )
    return settings[value[1:]]


def merge(*fragments: dict[str, Any]) -> dict[str, Any]:
    """Merge fragments of a cell; later keys win, ``override`` and ``flags`` accumulate."""
    merged: dict[str, Any] = {}
    for fragment in fragments:
        for key, value in fragment.items():
            if key == "override":
                earlier = merged.get("override", {})
                names = [*earlier, *(name for name in value if name not in earlier)]
                merged["override"] = {n: {**earlier.get(n, {}), **value.get(n, {})} for n in names}
            elif key == "flags":
                merged["flags"] = [*merged.get("flags", []), *value]
            else:
                merged[key] = value
    return merged
