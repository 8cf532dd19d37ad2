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


@dataclass(frozen=True)
class Run:
    """One unit of work.

    Attributes:
        stage: which stage does it.
        id: readable slug and eight digits of the hash of (stage, spec).
        spec: everything its result depends on: components with parameters and versions, the ids
            of the runs it is made from, seed. JSON-able.
        inputs: the runs it is made from.
        lineage: id of the classifier run behind it, for gathering runs into jobs.
        passes: predicted cost in forward passes of ``network``.
        network: what one pass is a pass of.
        size_bytes: predicted size of its files.
    """

    stage: str
    id: str
    spec: dict[str, Any] = field(hash=False)
    inputs: tuple[Run, ...] = field(hash=False)
    lineage: str
    passes: float
    network: str
    size_bytes: int


def make_run(
    stage: str,
    slug: str,
    spec: dict[str, Any],
    inputs: tuple[Run, ...] = (),
    lineage: str = "",
    passes: float = 0.0,
    network: str = "",
    size_bytes: int = 0,
) -> Run:
    """A run whose id follows from its content."""
    identity = f"{slug}-{short_hash({'stage': stage, **spec})}"
    return Run(stage, identity, spec, inputs, lineage or identity, passes, network, size_bytes)


def component(kind: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A component as it stands in a spec: name, version and every parameter."""
    described = registry.describe(kind, name)
    filled = {**described.parameters, **parameters}
    return {"component": name, "version": described.version, "parameters": _plain(filled)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def passes(kind: str, spec: dict[str, Any], constant: str) -> float:
    """Value of a component's cost formula (``PASSES`` or ``FIT_PASSES``) for its parameters."""
    formula = registry.describe(kind, spec["component"]).constants.get(constant, "0")
    return evaluate(formula, spec["parameters"])


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
