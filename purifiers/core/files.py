"""Files that components read, such as a user's weights, identified by the SHA-256 of their content.

Without it, another checkpoint at the same path would be taken for the one behind stored results.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from purifiers.core.artifacts import sha256, write_text
from purifiers.core.errors import UserError
from purifiers.core.spec import ComponentSpec

T = TypeVar("T")
STORE = "digests.json"
_digests: dict[str, list[Any]] = {}
"""Path to size, times of change and SHA-256 of every file that this process has read."""
_memo: dict[Hashable, Any] | None = None


@contextlib.contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Keep the digests of files in ``folder``, for later processes; find and read files once.

    A file is read again if its size or a time of its last change differs. Inside the block,
    :func:`memoized` computes each value once, so that files must not change there.

    Args:
        folder: the runs' folder; is created when there is something to store.
    """
    global _memo
    path = folder / STORE
    with contextlib.suppress(OSError, ValueError, AttributeError):  # rewritten below
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
            if isinstance(entry, list) and len(entry) == 4:
                _digests.setdefault(name, entry)
    before, outer, _memo = dict(_digests), _memo, {}
    try:
        yield
    finally:
        _memo = outer
        with contextlib.suppress(OSError):  # a folder that cannot be written: read them again later
            if _digests != before:
                write_text(path, json.dumps(_digests, indent=0, sort_keys=True) + "\n")


def memoized(key: Hashable, compute: Callable[[], T]) -> T:
    """``compute()``, at most once per key inside :func:`remembered`."""
    if _memo is None:
        return compute()
    if key not in _memo:
        _memo[key] = compute()
    value: T = _memo[key]
    return value


def digest_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; read again only if its size or a time of change differs."""
    state = path.stat()
    key = str(path.resolve())
    entry = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    if _digests.get(key, [])[:3] != entry:
        _digests[key] = [*entry, sha256(path)]
    return str(_digests[key][3])


def check_readable(path: Path) -> None:
    """Raise an error unless a path is a file that can be read and has content.

    Raises:
        UserError: it is a folder, a broken link, empty, or not readable.
    """
    try:
        if path.is_dir():
            problem, remedy = "is a folder, expected a file", "rename or remove it"
        elif not path.exists() and path.is_symlink():
            problem, remedy = f"is a broken link to {path.readlink()}", "restore its target"
        elif path.stat().st_size == 0:
            problem, remedy = "is empty", "replace or remove it"
        else:
            path.open("rb").close()
            return
    except OSError as error:
        problem, remedy = f"cannot be read ({error.strerror})", "correct its permissions"
    raise UserError(f"{path}: {problem}: {remedy}")


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
