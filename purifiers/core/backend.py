"""The plotting backend that a process inherits."""

from __future__ import annotations

import importlib.util
import os

_MODULE = "module://"


def drop_missing_backend() -> None:
    """Remove ``MPLBACKEND`` if it names a module that is not installed.

    Jupyter exports its own backend to every command that a notebook starts, and matplotlib refuses
    to be imported where that module is missing. The suite writes files and needs no backend.
    """
    backend = os.environ.get("MPLBACKEND", "")
    if not backend.startswith(_MODULE):
        return
    try:
        missing = importlib.util.find_spec(backend.removeprefix(_MODULE)) is None
    except (ImportError, ValueError):  # a missing parent package, or no module name
        missing = True
    if missing:
        del os.environ["MPLBACKEND"]
