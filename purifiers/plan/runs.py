"""Runs: the units of work, named by what they are made of."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from purifiers.core import registry
from purifiers.core.artifacts import short_hash

_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


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

    Parameters in its ``LATER`` joined when there were runs of its version already. At their
    defaults they are left out, so that those runs keep their names.
    """
    described = registry.describe(kind, name)
    filled = {**described.parameters, **parameters}
    for joined in described.constants.get("LATER", ()):
        if filled[joined] == described.parameters[joined]:
            del filled[joined]
    return {"component": name, "version": described.version, "parameters": _plain(filled)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def passes(kind: str, spec: dict[str, Any], constant: str, images: int = 1) -> float:
    """Value of a component's cost formula (``PASSES``, ``FIT_PASSES``, or the same of its own
    network) for its parameters and the number of training images."""
    formula = registry.describe(kind, spec["component"]).constants.get(constant, "0")
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


def evaluate(formula: str, values: Mapping[str, Any]) -> float:
    """Value of arithmetic over parameters."""
    return float(_evaluate(ast.parse(formula, mode="eval").body, values))


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return float(values[node.id])
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"a cost formula is arithmetic over parameters, not {ast.dump(node)}")
