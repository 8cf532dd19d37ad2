"""Errors that a user can fix, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can fix.

    Its message is one line: where it is, what is wrong and how to fix it. The command line prints
    the line without a traceback and exits with status 2.
    """


def check_choice(name: str, value: T, options: Iterable[Any]) -> T:
    """Return ``value`` if it is one of ``options``.

    Args:
        name: the setting, for the error message.

    Raises:
        UserError: it is none of them.
    """
    options = tuple(options)
    if value not in options:
        hint = did_you_mean(value, options)
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(map(str, options))}{hint}")
    return value


def did_you_mean(name: object, options: Iterable[object]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``options``, or ``""``."""
    close = difflib.get_close_matches(str(name), map(str, options), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
