"""Look-up of components by name: every component is one file in the folder of its kind.

The component ``wide_resnet`` of kind ``classifier`` is the class ``WideResnet`` in
``purifiers/classifiers/wide_resnet.py``. Planning reads the file's syntax tree without importing
it, so that jobs that parse the workflow do not import torch.
"""

from __future__ import annotations

import ast
import csv
import functools
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core import parameters
from purifiers.core.class_source import (
    Types,
    bases,
    constructor_parameters,
    declared_parts,
    declared_traits,
    find_class,
)
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.traits import (
    AttackTraits,
    ClassifierTraits,
    DatasetTraits,
    Listed,
    MethodTraits,
    TrainingTraits,
    check_rules,
)

FOLDERS = {
    "attack": "attacks",
    "classifier": "classifiers",
    "dataset": "datasets",
    "method": "methods",
    "training": "training",
}
KINDS = tuple(FOLDERS)
_ROOT = Path(__file__).resolve().parent.parent


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
        parts: outer parts of a classifier, its ``TAPS`` first; empty: unknown.
    """

    kind: str
    name: str
    path: Path
    traits: Any
    parameters: dict[str, Any]
    required: tuple[str, ...]
    types: Types
    summary: str
    parts: tuple[str, ...] = ()

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

    def check_rules(self, values: Mapping[str, Any], where: str) -> None:
        """Raise an error unless the parameters meet the component's rules and stand in its list.

        Args:
            values: the parameters that are set; the others have their defaults.
            where: begins the error message.

        Raises:
            UserError: a rule is not met, or the list has no such row.
        """
        values = {**self.parameters, **values}
        check_rules(self.traits.rules, values, where)
        if (listed := getattr(self.traits, "listed", None)) is not None:
            self._check_listed(listed, values, where)

    def _check_listed(self, listed: Listed, values: Mapping[str, Any], where: str) -> None:
        *context, (parameter, column) = listed.columns
        with self.path.with_name(listed.file).open(encoding="utf-8", newline="") as file:
            options = [
                row[column]
                for row in csv.DictReader(file)
                if all(row[other] == values[name] for name, other in context)
            ]
        if values[parameter] not in options:
            among = ", ".join(f"{name} {values[name]}" for name, _ in context)
            hint = did_you_mean(values[parameter], options)
            raise UserError(
                f"{where}: {parameter} is {values[parameter]!r}, which {listed.file} does not list "
                f"for {among}{hint}: choose another"
            )

    def checked(self, parameter: str, value: Any, where: str) -> Any:
        """The value converted to the parameter's type: lengths to numbers, 3.0 to 3 if an int.

        Args:
            where: begins the error message.

        Raises:
            UserError: the value is of another type, or a number outside its range.
        """
        return parameters.checked(self.types[parameter], value, f"{where}: {parameter}")


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


def attack_traits(name: str) -> AttackTraits:
    """Traits of an attack."""
    traits: AttackTraits = describe("attack", name).traits
    return traits


def classifier_traits(name: str) -> ClassifierTraits:
    """Traits of a classifier."""
    traits: ClassifierTraits = describe("classifier", name).traits
    return traits


def dataset_traits(name: str) -> DatasetTraits:
    """Traits of a data set."""
    traits: DatasetTraits = describe("dataset", name).traits
    return traits


def method_traits(name: str) -> MethodTraits:
    """Traits of a method."""
    traits: MethodTraits = describe("method", name).traits
    return traits


def training_traits(name: str) -> TrainingTraits:
    """Traits of a training recipe."""
    traits: TrainingTraits = describe("training", name).traits
    return traits


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
    if find_class(tree, owner) is None:
        raise UserError(f"{path}: expected a class {owner}, named after the file")
    chain = bases(tree, owner, path, _ROOT)
    defaults, required, types = constructor_parameters(chain)
    traits = declared_traits(kind, chain, defaults)
    summary = (ast.get_docstring(tree) or "").strip().split("\n")[0]
    parts = declared_parts(chain) if kind == "classifier" else ()
    return Description(kind, name, path, traits, defaults, required, types, summary, parts)
