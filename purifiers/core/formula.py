"""Arithmetic and comparisons over parameters, in which components declare costs and rules."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Collection, Mapping
from typing import Any

from purifiers.core.errors import UserError, did_you_mean

_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def evaluate(formula: str, values: Mapping[str, Any]) -> float:
    """Value of a formula such as ``"3 * steps"``; a comparison is 1 if it holds, else 0.

    ``"mean(attacks, pgd=3 * steps, cw_l2=60)"`` is the mean of what is given for each name in the
    parameter ``attacks``, a list or a single name; a name without anything counts as 0.
    """
    return float(_evaluate(_parsed(formula), values))


def names_in(formula: str) -> tuple[str, ...]:
    """The parameters in a formula."""
    return tuple(node.id for node in ast.walk(_parsed(formula)) if isinstance(node, ast.Name))


@functools.cache
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def check_formula(formula: str, parameters: Collection[str], where: str) -> None:
    """Raise an error if ``formula`` cannot be evaluated.

    Args:
        formula: such as ``"3 * steps"``.
        parameters: the names that it may use.
        where: begins the error message.

    Raises:
        UserError: the formula is not arithmetic, or uses a name that is no parameter.
    """
    try:
        tree = ast.parse(formula, mode="eval")
    except SyntaxError:
        raise UserError(f"{where} is {formula!r}: not arithmetic such as 3 * steps") from None
    choices = dict(filter(None, map(_mean_of, ast.walk(tree))))
    allowed = {*parameters, "mean"} if choices else parameters
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in allowed:
            hint = did_you_mean(node.id, parameters)
            raise UserError(f"{where} is {formula!r}: there is no parameter {node.id!r}{hint}")
    try:
        float(_evaluate(tree.body, {**dict.fromkeys(parameters, 1), **choices}))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{where} is {formula!r}: {error}") from None


def _mean_of(node: ast.AST) -> tuple[str, dict[str, ast.expr]] | None:
    """The list and the formula of each name in ``mean(names, a=..., b=...)``; None if it is not."""
    match node:
        case ast.Call(ast.Name("mean"), [ast.Name(names)], [_, *_] as given):
            return names, {str(keyword.arg): keyword.value for keyword in given}
    return None


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value) if isinstance(node.value, float) else node.value  # type: ignore
    if isinstance(node, ast.Name):
        return float(values[node.id])
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        result: float = _OPERATORS[type(node.op)](left, right)
        return result
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _evaluate(node.left, values), _evaluate(node.comparators[0], values)
        return float(_OPERATORS[type(node.ops[0])](left, right))
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return float(combine(_evaluate(part, values) for part in node.values))
    if (mean := _mean_of(node)) is not None:
        parameter, formulas = mean
        names = values[parameter]
        names = (names,) if isinstance(names, str) else names
        total = sum(_evaluate(formulas[name], values) for name in names if name in formulas)
        return total / max(len(names), 1)
    raise ValueError(f"{ast.unparse(node)} is not a number, a parameter or arithmetic of them")
