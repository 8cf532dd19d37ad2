"""The tables of all traits in CONTRIBUTING.md, made from the dataclasses and their comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize
from collections.abc import Iterator

from purifiers.core import traits

HEADER = "| Field | Type | Default | Meaning |\n|:--|:--|:--|:--|"


@dataclasses.dataclass(frozen=True)
class FieldRow:
    """One field of a dataclass, as its source declares it.

    Attributes:
        default: empty where the field is required.
        meaning: the comment beside the field; empty where there is none.
    """

    name: str
    annotation: str
    default: str
    meaning: str


def declared_classes() -> list[type]:
    """The public dataclasses of ``purifiers.core.traits``, in the order of the file."""
    return [
        value
        for name, value in vars(traits).items()
        if dataclasses.is_dataclass(value)
        and isinstance(value, type)
        and value.__module__ == traits.__name__
        and not name.startswith("_")
    ]


def field_rows(cls: type) -> list[FieldRow]:
    """The fields that a dataclass declares itself; inherited ones are those of its base class."""
    source = inspect.getsource(cls)
    (definition,) = ast.parse(source).body
    if not isinstance(definition, ast.ClassDef):
        raise TypeError(f"{cls} is no class")
    comments = _comments(source)
    names = {field.name for field in dataclasses.fields(cls)}
    rows = []
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in names:
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            rows.append(
                FieldRow(
                    ast.unparse(node.target),
                    ast.unparse(node.annotation),
                    "" if node.value is None else ast.unparse(node.value),
                    " ".join(comments[line] for line in lines if line in comments),
                )
            )
    return rows


def traits_markdown() -> str:
    """A heading, a sentence and a table for each dataclass."""
    return "\n".join(part for cls in declared_classes() for part in _section(cls))


def _section(cls: type) -> Iterator[str]:
    yield f"#### `{cls.__name__}`\n"
    summary = (cls.__doc__ or "").strip().split("\n")[0]
    base = cls.__bases__[0]
    if base is traits.Traits:
        summary += f" Also those of `{base.__name__}`."
    yield f"{summary}\n"
    if rows := field_rows(cls):
        yield HEADER
        for row in rows:
            default = _code(row.default) if row.default else "required"
            cells = (_code(row.name), _code(row.annotation), default, row.meaning)
            yield f"| {' | '.join(cells)} |"
        yield ""


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`"


def _comments(source: str) -> dict[int, str]:
    """Line number to the comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
