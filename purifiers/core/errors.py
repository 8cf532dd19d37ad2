"""Errors that speak to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; its one line says what, where and how.

    The command line prints the line without a traceback and exits with status 2.
    """


def check_choice(name: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; ``name`` says whose setting it is.

    Raises:
        UserError: it is not.
    """
    known = tuple(known)
    if value not in known:
        hint = did_you_mean(value, known)
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(known)}{hint}")
    return value


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``options``, or ``""``."""
    close = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
