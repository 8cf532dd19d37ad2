"""Reading of lengths on the [0, 1] pixel scale, such as ``8/255``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from purifiers.core.errors import UserError

_FRACTION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")


Length = Any
"""Annotation of a parameter that is an L-infinity distance on the [0, 1] scale: a number, or text
such as ``"8/255"``. The constructor receives the number; a type checker cannot see that."""

Radius = Any
"""The same for an L2 distance over all pixels of an image, above 0."""


def fraction(value: str | float, where: str = "") -> float:
    """Read a length: a number, or a string such as ``"8/255"``.

    Args:
        where: begins the error message.

    Raises:
        UserError: the text is neither a number nor ``a/b`` with ``b`` not zero.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _FRACTION.match(str(value))
    if match and float(match[2]) != 0.0:
        return float(match[1]) / float(match[2])
    try:
        return float(str(value))  # text, so that True and None are refused
    except ValueError:
        place = f"{where} is " if where else ""
        raise UserError(
            f"{place}{value!r}, not a length: write a number or a fraction such as 8/255"
        ) from None


def number_in(value: object) -> float | None:
    """The number in a text such as ``"5e-2"``, which YAML reads as text; None if there is none."""
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def length_kind(types: Collection[str]) -> str:
    """``"Length"`` or ``"Radius"``, whichever is among an annotation's ``types``, else ``""``."""
    if "Length" in types:
        return "Length"
    return "Radius" if "Radius" in types else ""


def read_length(kind: str, value: str | float, where: str) -> float:
    """Read a length and check its range.

    Args:
        kind: ``"Length"``: an L-infinity distance in [0, 1]. ``"Radius"``: an L2 distance over all
            pixels of an image, above 0.
        where: begins the error message and names the parameter.

    Raises:
        UserError: not a length, or out of range, such as eps in grey levels (8, not 8/255).
    """
    number = fraction(value, where)
    if kind == "Length" and not 0.0 <= number <= 1.0:
        hint = f"; write {number:g}/255 for {number:g} grey levels" if number > 1 else ""
        raise UserError(f"{where} is {number:g}, but lengths lie in [0, 1]{hint}")
    if kind == "Radius" and not 0.0 < number < math.inf:
        raise UserError(f"{where} is {number:g}, but a length above 0 is needed")
    return number
