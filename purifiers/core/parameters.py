"""Check of a component's parameters against the annotations of its constructor."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Mapping
from typing import Any

from purifiers.core.choices import CHOICES
from purifiers.core.errors import UserError, check_choice
from purifiers.core.numbers import length_kind, number_in, read_length
from purifiers.core.ranges import RANGES

Types = tuple[str, ...]
"""The alternatives of an annotation, as ``("Positive", "None")`` or ``("Sequence[Fraction]",)``."""

_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float)),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "Sequence": ("a list", lambda value: isinstance(value, list | tuple)),
    "tuple": ("a list", lambda value: isinstance(value, list | tuple)),
    "Mapping": ("a mapping", lambda value: isinstance(value, Mapping)),
    "None": ("null", lambda value: value is None),
    "Length": ("a length such as 0.03 or 8/255", lambda value: type(value) in (int, float)),
    "Radius": ("a length such as 0.5 or 128/255", lambda value: type(value) in (int, float)),
    **{name: (range_.expected, range_.__contains__) for name, range_ in RANGES.items()},
}
"""Annotation to a description of its values and a check of a value."""


def alternatives(annotation: str | ast.expr | None) -> Types:
    """The alternatives of an annotation, which ``|`` separates; empty without an annotation."""
    node = ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return alternatives(node.left) + alternatives(node.right)
    return () if node is None else (ast.unparse(node),)


def is_ranged(types: Types) -> bool:
    """Whether an annotation has a number in it whose range is declared."""
    return any(_element(name) in (*RANGES, "Length", "Radius") for name in types)


def is_restricted(types: Types) -> bool:
    """Whether the values of an annotation are declared, as a range or a choice."""
    return is_ranged(types) or any(_is_choice(name) for name in types)


def is_numeric(types: Types) -> bool:
    """Whether an annotation has a number in it, with or without a range."""
    return is_ranged(types) or any(_element(name) in ("int", "float", "complex") for name in types)


def choices(name: str) -> tuple[Any, ...]:
    """The values of an alternative such as ``"Literal['sde', 'ode']"`` or ``"Schedule"``."""
    if name in CHOICES:
        return CHOICES[name]
    values: tuple[Any, ...] = ast.literal_eval(f"({name.partition('[')[2].rpartition(']')[0]},)")
    return values


def checked(types: Types, value: Any, where: str) -> Any:
    """The value converted to a parameter's type: ``"8/255"`` to a number, 3.0 to 3 if whole.

    Args:
        types: as from :func:`alternatives`.
        where: begins the error message and names the parameter.

    Raises:
        UserError: the value is of another type, or a number outside its range.
    """
    if value is not None and (kind := length_kind(types)):
        value = read_length(kind, value, where)
    for name in types:
        if name in RANGES:
            value = RANGES[name].converted(value)
        elif _is_choice(name) and type(value) in (int, float):
            value = next((choice for choice in choices(name) if choice == value), value)
        elif isinstance(value, list | tuple) and _element(name) in RANGES:
            items = (RANGES[_element(name)].converted(item) for item in value)
            value = list(items) if isinstance(value, list) else tuple(items)
        elif name == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
    if not types or any(_fits(name, value) for name in types):
        return value
    if len(types) == 1 and _is_choice(types[0]):
        check_choice(where, value, choices(types[0]))
    expected = " or ".join(_expected(name) for name in types)
    number = number_in(value)
    hint = "" if number is None else f" (text; write {number})"
    raise UserError(f"{where} is {value!r}{hint}, but takes {expected}")


def argument(name: str) -> Callable[[str], Any]:
    """A ``type`` for :mod:`argparse`: the number in a word, in the range ``name``.

    Args:
        name: an annotation such as ``"Count"``.
    """
    range_ = RANGES[name]

    def read(word: str) -> Any:
        try:
            value = range_.converted(float(word))
        except ValueError:
            value = word
        if value not in range_:
            raise argparse.ArgumentTypeError(f"is {word!r}, but takes {range_.expected}")
        return value

    return read


def _fits(name: str, value: Any) -> bool:
    base = name.partition("[")[0]
    if _is_choice(name):
        return any(value == choice and type(value) is type(choice) for choice in choices(name))
    if base not in _TYPES:
        return True
    element = RANGES.get(_element(name))
    if element is None or base == name:
        return _TYPES[base][1](value)
    return _TYPES[base][1](value) and all(item in element for item in value)


def _expected(name: str) -> str:
    base, element = name.partition("[")[0], RANGES.get(_element(name))
    if _is_choice(name):
        return f"one of {', '.join(map(str, choices(name)))}"
    text = _TYPES[base][0]
    return text if element is None or base == name else f"{text}, each {element.expected}"


def _is_choice(name: str) -> bool:
    return name in CHOICES or name.startswith("Literal[")


def _element(name: str) -> str:
    """``"Fraction"`` of ``"Sequence[Fraction]"`` or ``"tuple[Fraction, ...]"``; else the name."""
    return name.partition("[")[2].partition(",")[0].rstrip("]") or name
