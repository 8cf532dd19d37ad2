"""Look-up of components by name: every component is one file in the folder of its kind.

The component ``wide_resnet`` of kind ``classifier`` is the class ``WideResnet`` in
``purifiers/classifiers/wide_resnet.py``. Planning reads the file's syntax tree without importing
it, so that jobs that parse the workflow do not import torch.
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
"""Annotation of a parameter to a description of its values and a check of a value."""
_TUPLES = "('a', 'b') or ('a',)"
Types = dict[str, tuple[str, ...]]
"""Parameter to the alternatives of its annotation, without brackets, as ``("float", "str")``."""
_ROOT = Path(__file__).resolve().parent.parent
_CORE = _ROOT / "core"


@dataclass(frozen=True)
class Description:
    """Properties of a component that planning needs, read from its source.

    Attributes:
        kind: a key of ``FOLDERS``.
        name: the component's name, which is that of its file.
        path: the file.
        traits: the component's traits, with the fields inherited from its base classes.
        parameters: constructor parameters with their default values, base classes included.
        required: the parameters without a default.
        types: the parameters' annotations.
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
        """The component's version; part of every identity that includes the component."""
        version: int = self.traits.version
        return version

    def check_parameters(self, values: Iterable[str], where: str) -> None:
        """Raise an error unless ``values`` are parameters of the component.

        Args:
            values: names of the parameters that are set.
            where: begins the error message.

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
        """The value converted to the parameter's type: lengths to numbers, 3.0 to 3 if an int.

        Args:
            where: begins the error message.

        Raises:
            UserError: the value is of another type, or a length out of range.
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
        hint = "" if number is None else f" (text for YAML; write {number})"
        raise UserError(f"{where}: {parameter} is {value!r}{hint}, but takes {expected}")


def class_name(name: str) -> str:
    """CamelCase of a snake_case name: ``cw_l2`` -> ``CwL2``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all components of a kind; files whose name starts with ``_`` are no components."""
    folder = _ROOT / FOLDERS[kind]
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


def exists(kind: str, name: str) -> bool:
    """Whether a component of that kind and name exists."""
    return name in names(kind)


@functools.cache
def describe(kind: str, name: str) -> Description:
    """Read a component's file without importing it.

    Raises:
        UserError: no such component, or a wrong declaration in its file.
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
    """Read the component ``name`` from the file ``path``.

    Raises:
        UserError: a wrong declaration in the file; the message names file and field.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    owner = class_name(name)
    if _class(tree, owner) is None:
        raise UserError(f"{path}: expected a class {owner}, named after the file")
    parameters, required, types = _parameters(tree, owner, path)
    traits = _traits(kind, owner, _bases(tree, owner, path), parameters)
    summary = (ast.get_docstring(tree) or "").strip().split("\n")[0]
    return Description(kind, name, path, traits, parameters, tuple(required), types, summary)


ClassSource = tuple[ast.Module, str, Path]
"""Source of a class: its module's syntax tree, its name and the module's file."""


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _bases(tree: ast.Module, name: str, path: Path) -> list[ClassSource]:
    """The class and the chain of its first bases, nearest first, within the package."""
    chain: list[ClassSource] = []
    place: ClassSource | None = (tree, name, path)
    while place is not None:
        chain.append(place)
        node = _class(place[0], place[1])
        base = node.bases[0] if node and node.bases else None
        place = _defining_file(place[0], base.id, place[2]) if isinstance(base, ast.Name) else None
    return chain


def _defining_file(tree: ast.Module, name: str, path: Path) -> ClassSource | None:
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


def _traits(kind: str, owner: str, chain: list[ClassSource], parameters: Mapping[str, Any]) -> Any:
    """The traits of the first class of the chain that declares them, checked.

    Raises:
        UserError: no class declares traits; a field is unknown, of a wrong type or not a literal;
            or a formula or list contains a name that is no parameter.
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
    for field, named in traits.parameter_names().items():
        for parameter in named:
            if parameter not in parameters:
                hint = did_you_mean(parameter, parameters)
                raise UserError(f"{path}: traits.{field}: {owner} has no {parameter!r}{hint}")
    for field, formula in traits.formulas().items():
        check_formula(formula, (*parameters, "images"), f"{path}: traits.{field}")
    return traits


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(TRAITS[kind])


def _declared_fields(chain: list[ClassSource], kind: str) -> dict[str, Any] | None:
    """Fields of the first ``traits = ...`` in the chain; None if no class has one."""
    for position, (tree, name, path) in enumerate(chain):
        node = _class(tree, name)
        for statement in node.body if node else ():
            if isinstance(statement, ast.Assign) and _is_name(statement.targets[0], "traits"):
                return _fields(statement.value, chain[position:], kind, path)
    return None


def _fields(value: ast.expr, chain: list[ClassSource], kind: str, path: Path) -> dict[str, Any]:
    """Fields of ``<kind>(...)``, or of ``<Base>.traits.replace(...)`` merged with the base's."""
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
    """Value of a literal; for a class of ``PARTS``, the fields that it sets.

    Raises:
        UserError: the expression is neither.
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
    """Parameters of the class's ``__init__``: all with defaults, the required ones, the types.

    Those of the base class are included if ``__init__`` takes ``**common`` or does not exist.
    """
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
    """Keyword-only parameters and positional ones with a default, as :func:`_parameters`."""
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
