"""The folder is the registry: every component is a file, found by its name.

A component ``wide_resnet`` of kind ``classifier`` is the class ``WideResnet`` in
``purifiers/classifiers/wide_resnet.py``. Planning only reads the file's syntax tree,
so that no job that parses the workflow ever imports torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.formula import check_formula
from purifiers.core.numbers import length_kind, number_in, read_length
from purifiers.core.traits import PARTS, TRAITS, field_names

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
    "Length": ("a length such as 0.03 or 8/255", lambda value: type(value) in (int, float)),
    "Radius": ("a length such as 0.5 or 128/255", lambda value: type(value) in (int, float)),
}
"""Annotation of a parameter to its description and the check of a value."""
_TUPLES = "('a', 'b') or ('a',)"
Types = dict[str, tuple[str, ...]]
"""Parameter to the alternatives of its annotation, without brackets: ``("float", "str")``."""
_ROOT = Path(__file__).resolve().parent.parent
_CORE = _ROOT / "core"


@dataclass(frozen=True)
class Description:
    """What planning needs of a component, read from its source.

    Attributes:
        traits: the class's own object, with the fields of its base classes.
        parameters: constructor parameters with their default values, base classes included.
        required: those without a default.
        types: their annotations.
        summary: first line of the module's docstring.
    """

    kind: str
    name: str
    path: Path
    traits: Any
    parameters: dict[str, Any]
    required: tuple[str, ...]
    types: Types
    summary: str

    @property
    def version(self) -> int:
        """Part of every identity; raised whenever the component's output changes."""
        version: int = self.traits.version
        return version

    def check_parameters(self, values: Iterable[str], where: str) -> None:
        """Refuse parameters the component does not have.

        Raises:
            UserError: an unknown name (with a suggestion), or a required one missing.
        """
        for parameter in values:
            if parameter not in self.parameters:
                hint = did_you_mean(parameter, self.parameters)
                raise UserError(
                    f"{where}: {self.kind} {self.name!r} has no parameter {parameter!r}{hint}"
                )
        for parameter in self.required:
            if parameter not in values:
                raise UserError(f"{where}: {self.kind} {self.name!r} needs {parameter!r}")

    def checked(self, parameter: str, value: Any, where: str) -> Any:
        """The value, if it is of the parameter's type; whole numbers without a decimal point.

        Raises:
            UserError: it is of another type, or a length out of range.
        """
        types = self.types[parameter]
        if value is not None and (kind := length_kind(types)):
            value = read_length(kind, value, f"{where}: {parameter}")
        elif "float" not in types and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not types or any(name not in _TYPES or _TYPES[name][1](value) for name in types):
            return value
        expected = " or ".join(_TYPES[name][0] for name in types)
        number = number_in(value)
        mend = "" if number is None else f" (text for YAML; write {number})"
        raise UserError(f"{where}: {parameter} is {value!r}{mend}, but takes {expected}")


def class_name(name: str) -> str:
    """CamelCase of a snake_case name: ``cw_l2`` -> ``CwL2``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all components of a kind; files that start with ``_`` do not count."""
    folder = _ROOT / FOLDERS[kind]
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


def exists(kind: str, name: str) -> bool:
    """Whether there is a component file of that name."""
    return name in names(kind)


@functools.cache
def describe(kind: str, name: str) -> Description:
    """Read a component's file without importing it.

    Raises:
        UserError: no such component, or a declaration in its file that is wrong.
    """
    if not exists(kind, name):
        raise UserError(f"there is no {kind} {name!r}{did_you_mean(name, names(kind))}")
    return describe_file(kind, name, _ROOT / FOLDERS[kind] / f"{name}.py")


def load(kind: str, name: str) -> type:
    """Import a component's class."""
    describe(kind, name)
    module = importlib.import_module(f"purifiers.{FOLDERS[kind]}.{name}")
    return getattr(module, class_name(name))


def describe_file(kind: str, name: str, path: Path) -> Description:
    """Read the component ``name`` from any file.

    Raises:
        UserError: a declaration in the file that is wrong; the line names file and field.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    owner = class_name(name)
    if _class(tree, owner) is None:
        raise UserError(f"{path}: expected a class {owner}")
    parameters, required, types = _parameters(tree, owner, path)
    traits = _traits(kind, owner, _bases(tree, owner, path), parameters)
    summary = (ast.get_docstring(tree) or "").strip().split("\n")[0]
    return Description(kind, name, path, traits, parameters, tuple(required), types, summary)


Place = tuple[ast.Module, str, Path]
"""A class: the module that defines it, its name, the module's file."""


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _bases(tree: ast.Module, name: str, path: Path) -> list[Place]:
    """The class and its first bases, nearest first, as far as the package defines them."""
    chain: list[Place] = []
    place: Place | None = (tree, name, path)
    while place is not None:
        chain.append(place)
        node = _class(place[0], place[1])
        base = node.bases[0] if node and node.bases else None
        place = _defining_file(place[0], base.id, place[2]) if isinstance(base, ast.Name) else None
    return chain


def _defining_file(tree: ast.Module, name: str, path: Path) -> Place | None:
    if _class(tree, name) is not None:
        return tree, name, path
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or name not in [a.name for a in node.names]:
            continue
        package, *parts = (node.module or "").split(".")
        if package == "purifiers":
            source = _ROOT.joinpath(*parts).with_suffix(".py")
            return ast.parse(source.read_text(encoding="utf-8")), name, source
    return None


def _traits(kind: str, owner: str, chain: list[Place], parameters: Mapping[str, Any]) -> Any:
    """The traits that the first class of the chain has, checked.

    Raises:
        UserError: there are none; an unknown field, a wrong type or something that is no literal;
            a formula or list that names no parameter.
    """
    path = chain[0][2]
    fields = _declared_fields(
        [place for place in chain if place[2].parent != _CORE], TRAITS[kind].__name__
    )
    if fields is None:
        raise UserError(
            f"{path}: class {owner} declares no traits: write "
            f"`traits = {TRAITS[kind].__name__}(version=1, ...)` in its body"
        )
    try:
        traits = _adapter(kind).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {_explained(error, kind)}") from None
    if traits.version < 1:
        raise UserError(f"{path}: traits.version is {traits.version}: count from 1")
    for field, listed in traits.parameter_names().items():
        for parameter in listed:
            if parameter not in parameters:
                hint = did_you_mean(parameter, parameters)
                raise UserError(f"{path}: traits.{field}: {owner} has no {parameter!r}{hint}")
    for field, formula in traits.formulas().items():
        check_formula(formula, (*parameters, "images"), f"{path}: traits.{field}")
    return traits


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(TRAITS[kind])


def _declared_fields(chain: list[Place], kind: str) -> dict[str, Any] | None:
    """The fields of the nearest ``traits = ...`` of the chain; None where no class has one."""
    for position, (tree, name, path) in enumerate(chain):
        node = _class(tree, name)
        for statement in node.body if node else ():
            if isinstance(statement, ast.Assign) and _is_name(statement.targets[0], "traits"):
                return _fields(statement.value, chain[position:], kind, path)
    return None


def _fields(value: ast.expr, chain: list[Place], kind: str, path: Path) -> dict[str, Any]:
    """Fields of ``<kind>(...)``, or of ``<Base>.traits.replace(...)`` with those of the base."""
    where = f"{path}, line {value.lineno}: traits"
    if isinstance(value, ast.Call) and not value.args:
        if _is_name(value.func, kind):
            return _keywords(value, where)
        match value.func:
            case ast.Attribute(ast.Attribute(ast.Name(base), "traits"), "replace"):
                for position, place in enumerate(chain):
                    if place[1] == base:
                        inherited = _declared_fields(chain[position:], kind)
                        return {**(inherited or {}), **_keywords(value, where)}
                raise UserError(f"{where}: {base} is no base class of {chain[0][1]}")
    raise UserError(f"{where}: expected {kind}(...) or <base class>.traits.replace(...)")


def _keywords(call: ast.Call, where: str) -> dict[str, Any]:
    fields = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            unpacked = ast.unparse(keyword.value)
            raise UserError(f"{where}: **{unpacked} is not read; write the fields out")
        fields[keyword.arg] = _literal(keyword.value, f"{where}.{keyword.arg}")
    return fields


def _literal(value: ast.expr, where: str) -> Any:
    """A literal; a part of the traits as the fields that it sets.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and not value.args:
        if value.func.id in PARTS:
            return _keywords(value, where)
        hint = did_you_mean(value.func.id, PARTS)
        raise UserError(f"{where}: {value.func.id} is none of {', '.join(PARTS)}{hint}")
    if isinstance(value, ast.Tuple):
        return [_literal(item, where) for item in value.elts]
    if any(isinstance(node, ast.List | ast.Set) for node in ast.walk(value)):
        raise UserError(f"{where}: {ast.unparse(value)}: write a tuple, {_TUPLES}")
    try:
        literal = ast.literal_eval(value)
        json.dumps(literal)  # no bytes
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: {ast.unparse(value)} is not a literal; planning reads it from the source"
        ) from None
    return literal


def _explained(error: ValidationError, kind: str) -> str:
    # a misspelt field before the one that it leaves missing, then the innermost mistake
    first = max(
        error.errors(),
        key=lambda e: (e["type"] == "unexpected_keyword_argument", len(e["loc"])),
    )
    # without the alternatives of a field's type, such as "bool"
    place = [str(p) for p in first["loc"] if p != "bool" and "[" not in str(p)]
    if first["type"] == "unexpected_keyword_argument":
        hint = did_you_mean(place[-1], field_names(kind, place[:-1]))
        return f"traits.{'.'.join(place)}: no such field{hint}"
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"traits.{'.'.join(place)} is missing"
    if first["type"] == "tuple_type":
        return f"traits.{'.'.join(place)} is {first['input']!r}: write a tuple, {_TUPLES}"
    return f"traits.{'.'.join(place)} is {first['input']!r}: {first['msg'].lower()}"


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _parameters(
    tree: ast.Module, owner: str, path: Path
) -> tuple[dict[str, Any], list[str], Types]:
    """Parameters of the class's ``__init__``; with ``**common`` (or no ``__init__`` of its own)
    those of its base class too, wherever that is."""
    node = _class(tree, owner)
    if node is None:
        raise UserError(f"{path}: expected a class {owner}")
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    parameters: dict[str, Any] = {}
    required: list[str] = []
    types: Types = {}
    if (init is None or init.args.kwarg is not None) and node.bases:
        base = node.bases[0]
        if isinstance(base, ast.Name) and (place := _defining_file(tree, base.id, path)):
            parameters, required, types = _parameters(*place)
    if init is not None:
        own, own_required, own_types = _signature(init)
        required = [name for name in required if name not in own] + own_required
        parameters, types = {**parameters, **own}, {**types, **own_types}
    return parameters, required, types


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
