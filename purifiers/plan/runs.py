"""Runs: the units of work, named by what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from purifiers.core import registry
from purifiers.core.artifacts import short_hash
from purifiers.core.formula import evaluate

Cost = Mapping[str, float]
"""Forward passes of one image, by network."""


@dataclass(frozen=True)
class Run:
    """One unit of work.

    Attributes:
        stage: which stage does it.
        id: readable slug and eight digits of the hash of (stage, spec).
        spec: everything its result depends on: components with parameters and versions, the ids
            of the runs it is made from, seed. JSON-able.
        inputs: the runs it is made from.
        lineage: id of the classifier's or data set's run behind it, for gathering runs into jobs.
        cost: predicted forward passes of one image, by network (keys as
            :func:`purifiers.plan.trained.network_key` makes them).
        size_bytes: predicted size of its files.
    """

    stage: str
    id: str
    spec: dict[str, Any] = field(hash=False)
    inputs: tuple[Run, ...] = field(hash=False)
    lineage: str
    cost: Cost = field(hash=False)
    size_bytes: int

    @property
    def passes(self) -> float:
        """The passes of all its networks together."""
        return sum(self.cost.values())


def make_run(
    stage: str,
    slug: str,
    spec: dict[str, Any],
    inputs: tuple[Run, ...] = (),
    lineage: str = "",
    cost: Cost | None = None,
    size_bytes: int = 0,
) -> Run:
    """A run whose id follows from its content."""
    identity = f"{slug}-{short_hash({'stage': stage, **spec})}"
    return Run(stage, identity, spec, inputs, lineage or identity, cost or {}, size_bytes)


def component(kind: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A component as it stands in a spec: name, version and every parameter.

    Parameters that ``joined_later`` are left out at their defaults: runs that are older than the
    parameter keep their identity.
    """
    described = registry.describe(kind, name)
    filled = {**described.parameters, **parameters}
    for joined in described.traits.joined_later:
        if filled[joined] == described.parameters[joined]:
            del filled[joined]
    return {"component": name, "version": described.version, "parameters": _plain(filled)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def passes(formula: str, spec: dict[str, Any], images: int = 1) -> float:
    """Value of a cost formula for a component's parameters and the number of training images."""
    return evaluate(formula, {**spec["parameters"], "images": images})


def added(*costs: Cost) -> Cost:
    """The sum of several costs."""
    total: dict[str, float] = {}
    for cost in costs:
        for network, count in cost.items():
            total[network] = total.get(network, 0.0) + count
    return total


def times(factor: float, cost: Cost) -> Cost:
    """A cost so many times."""
    return {network: factor * count for network, count in cost.items()}
