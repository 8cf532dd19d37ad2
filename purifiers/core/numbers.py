"""Lengths on the [0, 1] pixel scale, as people write them."""

from __future__ import annotations

import re

from purifiers.core.errors import UserError

_FRACTION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")


def fraction(value: str | float) -> float:
    """Read a length: a number, or a string such as ``"8/255"``.

    Raises:
        UserError: the text is neither a number nor ``a/b`` with ``b`` not zero.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _FRACTION.match(str(value))
    if match and float(match[2]) != 0.0:
        return float(match[1]) / float(match[2])
    try:
        return float(str(value))  # so that True and None are no lengths either
    except ValueError:
        raise UserError(
            f"{value!r} is not a length: write a number or a fraction such as 8/255"
        ) from None


def number_in(value: object) -> float | None:
    """The number that a text is, such as ``"5e-2"``, which YAML takes for text; else None."""
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def is_fraction(value: object) -> bool:
    """Whether ``value`` is text of the form ``a/b``."""
    return isinstance(value, str) and _FRACTION.match(value) is not None


def is_linf_length(parameter: str) -> bool:
    """Whether a parameter of this name is an L-infinity length on the pixel scale."""
    known = ("eps", "step_size", "train_step", "augmentation_step")
    return parameter in known or parameter.endswith("_eps")


def check_linf_length(parameter: str, value: float, where: str) -> None:
    """Refuse an L-infinity length outside [0, 1].

    Raises:
        UserError: typically eps given in grey levels (8) and not as a fraction (8/255).
    """
    if not 0.0 <= value <= 1.0:
        mend = f"; write {value:g}/255 for {value:g} grey levels" if value > 1 else ""
        raise UserError(f"{where}: {parameter} is {value:g}, but images live in [0, 1]{mend}")
