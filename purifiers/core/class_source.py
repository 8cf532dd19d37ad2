"""What a component's class declares, read from its source: constructor parameters and traits."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.formula import check_formula
from purifiers.core.parameters import alternatives
from purifiers.core.traits import IMAGE_SIDES, PARTS, TRAITS, field_names

_TUPLES = "('a', 'b') or ('a',)"
Types = dict[str, tuple[str, ...]]
"""Parameter to the alternatives of its annotation, as ``("float", "str")``."""
ClassSource = tuple[ast.Module, str, Path]
"""Source of a class: its module's syntax tree, its name and the module's file."""


def find_class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """The class of that name, or None."""
    return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)


def bases(tree: ast.Module, name: str, path: Path, root: Path) -> list[ClassSource]:
    """The class and the chain of its first bases, nearest first, within the package.

    Args:
        root: the package's folder.
    """
    chain: list[ClassSource] = []
    place: ClassSource | None = (tree, name, path)
    while place is not None:
        chain.append(place)
        tree, name, path = place
        node = find_class(tree, name)
        base = node.bases[0] if node and node.bases else None
        place = _defining_file(tree, base.id, path, root) if isinstance(base, ast.Name) else None
    return chain


def _defining_file(tree: ast.Module, name: str, path: Path, root: Path) -> ClassSource | None:
    if find_class(tree, name) is not None:
        return tree, name, path
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or name not in [a.name for a in node.names]:
            continue
        package, *parts = (node.module or "").split(".")
        if package == "purifiers":
            source = root.joinpath(*parts).with_suffix(".py")
            return ast.parse(source.read_text(encoding="utf-8")), name, source
    return None


def declared_traits(kind: str, chain: list[ClassSource], parameters: Mapping[str, Any]) -> Any:
    """The traits of the first class of the chain that declares them, checked.

    Raises:
        UserError: no class declares traits; a field is unknown, of a wrong type or not a literal;
            or a formula or list contains a name that is no parameter.
    """
    _, owner, path = chain[0]
    # the base classes in core declare none that a component could use
    components = [place for place in chain if place[2].parent.name != "core"]
    fields = _declared_fields(components, TRAITS[kind].__name__)
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
    images = getattr(traits, "images", None)
    for rule in images.rules if images else ():
        check_formula(rule.holds, (*parameters, *IMAGE_SIDES), f"{path}: traits.images.rules")
    return traits


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(TRAITS[kind])


def _declared_fields(chain: list[ClassSource], kind: str) -> dict[str, Any] | None:
    """Fields of the first ``traits = ...`` in the chain; None if no class has one."""
    for position, (tree, name, path) in enumerate(chain):
        node = find_class(tree, name)
        for statement in node.body if node else ():
            match statement:
                case ast.Assign([ast.Name("traits")], value):
                    return _fields(value, chain[position:], kind, path)
                case ast.AnnAssign(ast.Name("traits"), _, ast.expr() as value):
                    return _fields(value, chain[position:], kind, path)
    return None


def declared_parts(chain: list[ClassSource]) -> tuple[str, ...]:
    """Outer parts of a classifier: its ``TAPS``, then all other public attributes that it assigns.

    Empty if no class of the chain declares ``TAPS`` as a literal: then nothing is known.
    """
    nodes = [node for tree, name, _ in chain if (node := find_class(tree, name)) is not None]
    taps: tuple[str, ...] = ()
    for node in reversed(nodes):
        for statement in node.body:
            match statement:
                case ast.AnnAssign(ast.Name("TAPS"), _, ast.Tuple() as value):
                    taps = ast.literal_eval(value)
    assigned = (
        inside.attr
        for node in nodes
        for inside in ast.walk(node)
        if isinstance(inside, ast.Attribute)
        and isinstance(inside.ctx, ast.Store)
        and not inside.attr.startswith("_")
    )
    return tuple(dict.fromkeys((*taps, *assigned))) if taps else ()


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


def constructor_parameters(
    chain: list[ClassSource],
) -> tuple[dict[str, Any], tuple[str, ...], Types]:
    """Defaults, required names and annotations of the constructor's parameters.

    Includes those of the base class if ``__init__`` takes ``**common`` or is inherited.

    Args:
        chain: as from :func:`bases`.
    """
    tree, owner, _ = chain[0]
    node = find_class(tree, owner)
    body = node.body if node else []
    init = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    parameters: dict[str, Any] = {}
    required: tuple[str, ...] = ()
    types: Types = {}
    if len(chain) > 1 and (init is None or init.args.kwarg is not None):
        parameters, required, types = constructor_parameters(chain[1:])
    if init is not None:
        own, own_required, own_types = _signature(init)
        required = (*(name for name in required if name not in own), *own_required)
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
    types = {argument.arg: alternatives(argument.annotation) for argument, _ in pairs}
    return parameters, required, types
