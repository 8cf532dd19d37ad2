"""Source files of the components that a run uses, with all that they import from the package."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from purifiers.core.registry import FOLDERS
from purifiers.core.spec import Spec

PACKAGE = Path(__file__).resolve().parent.parent


def component_sources(spec: Spec, package: Path = PACKAGE) -> frozenset[Path]:
    """Files of the components in a spec, and those that they import, directly or indirectly.

    Args:
        package: the folder of the package ``purifiers``.
    """
    components = {(kind, component.component) for kind, component in spec.components()}
    pending = [package / FOLDERS[kind] / f"{name}.py" for kind, name in components]
    reached: set[Path] = set()
    while pending:
        path = pending.pop()
        if path not in reached:
            reached.add(path)
            pending += _imported(path, package)
    return frozenset(reached)


@functools.cache
def _imported(path: Path, package: Path) -> tuple[Path, ...]:
    """Files of the package that one of its files imports."""
    names: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [_place(alias.name, package) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _place(node.module or "", package)
            if node.level:
                module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names += [module, *(module / alias.name for alias in node.names)]
    return tuple(file for name in names for file in _files(name) if package in file.parents)


def _place(module: str, package: Path) -> Path:
    """Path of a module without its suffix; a module of another package does not exist there."""
    first, _, rest = module.partition(".")
    return package.joinpath(*rest.split(".")) if first == package.name else Path(first)


def _files(name: Path) -> Iterator[Path]:
    """The file of a module or package; none if ``name`` is neither."""
    for file in (name.with_suffix(".py"), name / "__init__.py"):
        if file.is_file():
            yield file
