"""The folder is the registry: every component is a file, found by its name.

A component ``wide_resnet`` of kind ``classifier`` is the class ``WideResnet`` in
``purifiers/classifiers/wide_resnet.py``. Planning only reads the file's syntax tree,
so that no job that parses the workflow ever imports torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import number_in

FOLDERS = {
    "attack": "attacks",
    "classifier": "classifiers",
    "dataset": "datasets",
    "method": "methods",
    "training": "training",
}
KINDS = tuple(FOLDERS)
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float)),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "Sequence": ("a list", lambda value: isinstance(value, list | tuple)),
    "None": ("null", lambda value: value is None),
}
"""Annotations of parameters: in words, and what a value of theirs is."""
Types = dict[str, tuple[str, ...]]
"""Parameter to its annotation without what stands in brackets: ``("float", "str")``."""
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Description:
    """What a component's file says of it, without running it.

    Attributes:
        parameters: constructor parameters with their default values, base classes included.
        required: those of them without a default.
        types: their annotations.
        constants: module-level literals (``VERSION``, ``BUDGET``, ``PASSES`` ...).
        summary: first line of the module's docstring.
    """

    kind: str
    name: str
    path: Path
    version: int
    parameters: dict[str, Any]
    required: tuple[str, ...]
    types: Types
    constants: dict[str, Any]
    summary: str

    def check_parameters(self, given: dict[str, Any], where: str) -> None:
        """Refuse parameters the component does not have.

        Raises:
            UserError: an unknown name (with a suggestion), or a required one missing.
        """
        for parameter in given:
            if parameter not in self.parameters:
                hint = did_you_mean(parameter, self.parameters)
                raise UserError(
                    f"{where}: {self.kind} {self.name!r} has no parameter {parameter!r}{hint}"
                )
        for parameter in self.required:
            if parameter not in given:
                raise UserError(f"{where}: {self.kind} {self.name!r} needs {parameter!r}")

    def checked(self, parameter: str, value: Any, where: str) -> Any:
        """The value, if it is of the parameter's type; whole numbers without a decimal point.

        Raises:
            UserError: it is of another type.
        """
        types = self.types[parameter]
        if "float" not in types and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not types or any(name not in _TYPES or _TYPES[name][1](value) for name in types):
            return value
        wanted = " or ".join(_TYPES[name][0] for name in types)
        number = number_in(value)
        mend = "" if number is None else f" (text for YAML; write {number})"
        raise UserError(f"{where}: {parameter} is {value!r}{mend}, but takes {wanted}")


def class_name(name: str) -> str:
    """CamelCase of a snake_case name: ``cw_l2`` -> ``CwL2``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all components of a kind; files that start with ``_`` do not count."""
    folder = _ROOT / FOLDERS[kind]
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


def exists(kind: str, name: str) -> bool:
    """Whether a component file of that name is there."""
    return name in names(kind)


@functools.cache
def describe(kind: str, name: str) -> Description:
    """Read a component's file without importing it.

    Raises:
        UserError: no such component.
    """
    if not exists(kind, name):
        raise UserError(f"there is no {kind} {name!r}{did_you_mean(name, names(kind))}")
    return _describe_file(kind, name, _ROOT / FOLDERS[kind] / f"{name}.py")


def load(kind: str, name: str) -> type:
    """Import a component's class."""
    describe(kind, name)
    module = importlib.import_module(f"purifiers.{FOLDERS[kind]}.{name}")
    return getattr(module, class_name(name))


def _describe_file(kind: str, name: str, path: Path) -> Description:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = _constants(tree)
    if not isinstance(constants.get("VERSION"), int):
        raise UserError(f"{path.name}: every component file has an integer VERSION")
    parameters, required, types = _parameters(tree, class_name(name), path)
    summary = (ast.get_docstring(tree) or "").strip().split("\n")[0]
    version = constants["VERSION"]
    return Description(
        kind, name, path, version, parameters, tuple(required), types, constants, summary
    )


def _constants(tree: ast.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        target = None
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            target, value = node.target.id, node.value
        if target is None or not target.isupper():
            continue
        try:
            found[target] = ast.literal_eval(value)
        except ValueError:
            continue
    return found


def _parameters(
    tree: ast.Module, wanted: str, path: Path
) -> tuple[dict[str, Any], list[str], Types]:
    """Parameters of the class's ``__init__``; with ``**common`` (or no ``__init__`` of its own)
    those of its base class too, wherever that is."""
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == wanted), None)
    if node is None:
        raise UserError(f"{path.name}: expected a class {wanted}")
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    parameters: dict[str, Any] = {}
    required: list[str] = []
    types: Types = {}
    if (init is None or init.args.kwarg is not None) and node.bases:
        base = node.bases[0]
        if isinstance(base, ast.Name) and (found := _defining_file(tree, base.id, path)):
            parameters, required, types = _parameters(*found)
    if init is not None:
        own, own_required, own_types = _signature(init)
        required = [name for name in required if name not in own] + own_required
        parameters, types = {**parameters, **own}, {**types, **own_types}
    return parameters, required, types


def _defining_file(tree: ast.Module, name: str, path: Path) -> tuple[ast.Module, str, Path] | None:
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
        return tree, name, path
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or name not in [a.name for a in node.names]:
            continue
        package, *parts = (node.module or "").split(".")
        if package == "purifiers":
            source = _ROOT.joinpath(*parts).with_suffix(".py")
            return ast.parse(source.read_text(encoding="utf-8")), name, source
    return None


def _signature(init: ast.FunctionDef) -> tuple[dict[str, Any], list[str], Types]:
    """Keyword-only parameters, and positional ones that have a default."""
    arguments, defaults = init.args.args, init.args.defaults
    pairs: list[tuple[ast.arg, ast.expr | None]] = []
    if defaults:
        pairs += list(zip(arguments[-len(defaults) :], defaults, strict=True))
    pairs += list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))
    parameters: dict[str, Any] = {}
    required: list[str] = []
    for argument, default in pairs:
        parameters[argument.arg] = None if default is None else ast.literal_eval(default)
        if default is None:
            required.append(argument.arg)
    types = {argument.arg: _types(argument.annotation) for argument, _ in pairs}
    return parameters, required, types


def _types(annotation: ast.expr | None) -> tuple[str, ...]:
    parts = ast.unparse(annotation).split("|") if annotation else []
    return tuple(part.strip().partition("[")[0] for part in parts)
