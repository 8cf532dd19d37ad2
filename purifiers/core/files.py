"""Files that components read, such as a user's weights, identified by the SHA-256 of their content.

Without it, another checkpoint at the same path would be taken for the one behind stored results.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import sha256
from purifiers.core.errors import UserError
from purifiers.core.spec import ComponentSpec


def digest_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; read once per process unless its size or time changes."""
    state = path.stat()
    return _digest(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, changed_ns: int) -> str:
    return sha256(path)


def digests(
    parameters: Mapping[str, Any], names: Iterable[str], where: str
) -> dict[str, str] | None:
    """SHA-256 of the files that some parameters name.

    Args:
        parameters: all parameters of a component.
        names: those that hold a path, a list of paths or None. A relative path is relative to the
            current folder.
        where: begins the error message.

    Returns:
        Path to hexadecimal SHA-256; None if no file is named.

    Raises:
        UserError: there is no such file.
    """
    result = {}
    for name in names:
        value = parameters[name] or ()
        for path in (value,) if isinstance(value, str) else value:
            if not Path(path).is_file():
                raise UserError(
                    f"{where}: {name}: there is no file {path}: correct the path; a relative one "
                    f"is relative to {Path.cwd()}"
                )
            result[path] = digest_of(Path(path))
    return result or None


def verify_files(spec: ComponentSpec) -> None:
    """Check that the files of a component are those of its spec.

    Raises:
        UserError: a file is missing, or its content has changed since planning.
    """
    for path, digest in (spec.files or {}).items():
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file, but {spec.component} reads it: restore it")
        if digest_of(Path(path)) != digest:
            raise UserError(
                f"{path}: has changed since {spec.component} was planned: plan again by starting "
                "the command again, or restore the file"
            )
