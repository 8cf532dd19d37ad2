"""Read and validate the YAML declarations of papers, tables, claims and scales."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import number_in

RECIPES = {
    "classifier": "classifiers",
    "training": "trainings",
    "method": "methods",
    "attack": "attacks",
}
"""Kind of a component to the key of ``paper.yaml`` that holds its recipes."""


@dataclass(frozen=True)
class Paper:
    """A paper's declarations, as read from its YAML files.

    Attributes:
        id: name of the paper's folder.
        folder: the folder, relative to the repository root.
        declared: content of ``paper.yaml``.
        documents: content of each table or figure file by its stem, in reading order.
        claims: content of ``claims.yaml``.
    """

    id: str
    folder: Path
    declared: dict[str, Any]
    documents: dict[str, dict[str, Any]]
    claims: tuple[dict[str, Any], ...]

    def recipe(self, kind: str, name: str, where: str) -> dict[str, Any]:
        """Look up a named recipe of ``paper.yaml``.

        Args:
            kind: a key of ``RECIPES``.
            where: file and cell, for the error message.

        Raises:
            UserError: ``paper.yaml`` has no recipe of that name.
        """
        recipes = self.declared.get(RECIPES[kind], {})
        if name not in recipes:
            raise UserError(
                f"{where}: {kind} {name!r} is not in {self.folder / 'paper.yaml'}"
                f"{did_you_mean(name, recipes)}"
            )
        return dict(recipes[name])

    def settings(self, dataset: str) -> dict[str, Any]:
        """Look up the values of the ``$name`` references on a data set.

        Raises:
            UserError: the settings of ``paper.yaml`` have no row for the data set.
        """
        rows = self.declared.get("settings", {})
        if dataset not in rows:
            raise UserError(
                f"{self.folder / 'paper.yaml'}: settings has no row for data set {dataset!r}"
                f"{did_you_mean(dataset, rows)}"
            )
        return rows[dataset]


def load_paper(root: Path, paper: str) -> Paper:
    """Read and validate the declarations in ``benchmarks/<paper>/``.

    Raises:
        UserError: the paper does not exist, or a file breaks its schema.
    """
    folder = root / "benchmarks" / paper
    if not (folder / "paper.yaml").exists():
        raise UserError(f"there is no paper {paper!r}{did_you_mean(paper, paper_names(root))}")
    declared = read_checked(folder / "paper.yaml", "paper", root)
    documents = {}
    for path in sorted(folder.glob("*.yaml"), key=lambda p: _reading_order(p.stem)):
        if path.stem in ("paper", "claims"):
            continue
        documents[path.stem] = read_checked(path, "table", root)
        _check_published(path, documents[path.stem])
        _check_images(path, documents[path.stem])
    claims: tuple[dict[str, Any], ...] = ()
    if (folder / "claims.yaml").exists():
        claims = tuple(read_checked(folder / "claims.yaml", "claims", root)["claims"])
    return Paper(paper, folder.relative_to(root), declared, documents, claims)


def paper_names(root: Path) -> list[str]:
    """Names of all papers: the folders of ``benchmarks/`` that contain a ``paper.yaml``."""
    return sorted(path.parent.name for path in (root / "benchmarks").glob("*/paper.yaml"))


def read_checked(path: Path, schema: str, root: Path) -> dict[str, Any]:
    """Read a YAML file and validate it against ``workflow/schemas/<schema>.schema.yaml``.

    Raises:
        UserError: the file is missing, is not YAML or breaks the schema; the message has the file,
            the key path, what was expected, and the nearest valid key.
    """
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: not readable as YAML: {' '.join(str(error).split())}") from None
    validator = _validator(root / "workflow" / "schemas" / f"{schema}.schema.yaml")
    errors = sorted(validator.iter_errors(content), key=_importance)
    if errors:
        raise UserError(f"{shown}: {_explain(errors[0])}")
    return content


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, but a duplicate key is an error instead of overwriting the first."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be a word or a number", key_node.start_mark
            )
        key = key_node.value
        if key != "<<" and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key!r}: remove one", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True)
        for k, v in node.value
    }


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@functools.cache
def _validator(path: Path) -> Any:
    import jsonschema  # not needed for declarations made in Python, as those of the self-check

    schema = yaml.safe_load(path.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _importance(error: Any) -> tuple[int, bool]:
    """Sort key: outer errors first; a misspelled key before the key that it leaves missing."""
    return len(list(error.absolute_path)), error.validator != "additionalProperties"


def _explain(error: Any) -> str:
    """Format a schema error as key path, what is wrong and what was expected."""
    while error.context:
        error = max(error.context, key=lambda e: len(list(e.absolute_path)))
    place = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        valid = error.schema.get("properties", {})
        unknown = [key for key in error.instance if key not in valid]
        if unknown and valid:
            hint = did_you_mean(unknown[0], valid) or f" (valid keys: {', '.join(valid)})"
            return f"{place}: unknown key {unknown[0]!r}{hint}"
    if error.validator == "enum":
        hint = did_you_mean(str(error.instance), map(str, error.validator_value))
        choices = ", ".join(map(str, error.validator_value))
        return f"{place}: {error.instance!r} is not one of {choices}{hint}"
    return f"{place}: {error.message}"


def blocks_of(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the blocks of a document; rows and columns default to the document's."""
    for block in content.get("blocks") or []:
        yield {
            **block,
            "rows": block.get("rows") or content.get("rows") or [],
            "columns": block.get("columns") or content.get("columns") or [],
            "published": block.get("published") or {},
            "doubts": block.get("doubts") or {},
        }


def _check_published(path: Path, content: dict[str, Any]) -> None:
    """Check the ids, the published values and the doubts of each block.

    Raises:
        UserError: a duplicate id, a published row that is not declared or that does not have one
            value per column, a number that YAML reads as text, or a doubt without a published
            value.
    """
    shown = f"benchmarks/{path.parent.name}/{path.name}"
    for block in blocks_of(content):
        where = f"{shown}: blocks.{block['id']}"
        for axis in ("rows", "columns"):
            ids = [entry["id"] for entry in block[axis]]
            if len(set(ids)) != len(ids):
                repeated = next(name for name in ids if ids.count(name) > 1)
                raise UserError(f"{where}.{axis}: duplicate id {repeated!r}: rename one")
        rows = [entry["id"] for entry in block["rows"]]
        for row, values in block["published"].items():
            if row not in rows:
                raise UserError(
                    f"{where}.published: there is no row {row!r}{did_you_mean(row, rows)}"
                )
            for value in values:
                if (number := number_in(value)) is not None:
                    raise UserError(
                        f"{where}.published.{row}: YAML reads {value!r} as text: write {number}"
                    )
            if len(values) != len(block["columns"]):
                raise UserError(
                    f"{where}.published.{row}: {len(values)} values "
                    f"for {len(block['columns'])} columns: write null where the paper has no value"
                )
        columns = [entry["id"] for entry in block["columns"]]
        for row, doubts in block["doubts"].items():
            for column in doubts:
                position = columns.index(column) if column in columns else None
                values = block["published"].get(row)
                if position is None or not values or values[position] is None:
                    raise UserError(
                        f"{where}.doubts.{row}.{column}: no published value: "
                        "correct the row or column, or remove the doubt"
                    )


def _check_images(path: Path, content: dict[str, Any]) -> None:
    """Check that the picture of example images lists declared rows and columns.

    Raises:
        UserError: a row or column that no block declares.
    """
    for axis in ("rows", "columns"):
        declared = {entry["id"] for block in blocks_of(content) for entry in block[axis]}
        for name in content.get("images", {}).get(axis, ()):
            if name not in declared:
                raise UserError(
                    f"benchmarks/{path.parent.name}/{path.name}: images.{axis}: there is no "
                    f"{axis[:-1]} {name!r}{did_you_mean(name, declared)}"
                )


def _reading_order(stem: str) -> tuple[Any, ...]:
    """Sort key: tables before other documents, then by kind and number."""
    kind, _, number = stem.partition("_")
    digits = "".join(c for c in number if c.isdigit())
    return (kind not in ("table",), kind, int(digits or 0), number)
