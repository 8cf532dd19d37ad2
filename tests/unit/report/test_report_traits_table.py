"""The tables of traits in CONTRIBUTING.md: complete, and made from the dataclasses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from purifiers.core import traits
from purifiers.core.errors import UserError
from purifiers.report.marked import MarkedBlock
from purifiers.report.reports import TRAITS
from purifiers.report.traits_table import declared_classes, field_rows, traits_markdown

ROOT = Path(__file__).resolve().parents[3]
BLOCK = MarkedBlock("PAGE.md", "numbers")


@pytest.mark.parametrize("cls", declared_classes())
def test_every_field_has_a_comment(cls: type) -> None:
    inherited = {f.name for base in cls.__mro__[1:] for f in _fields(base)}
    own = [field.name for field in _fields(cls) if field.name not in inherited]
    rows = field_rows(cls)
    assert [row.name for row in rows] == own
    assert [row.name for row in rows if not row.meaning] == []
    assert (cls.__doc__ or "").strip()


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def test_every_class_that_a_component_may_write_has_a_table() -> None:
    assert set(declared_classes()) >= {*traits.TRAITS.values(), *traits.PARTS.values()}
    page = traits_markdown()
    for cls in declared_classes():
        assert f"### `{cls.__name__}`\n" in page


def test_a_row_is_what_the_source_declares() -> None:
    row = {row.name: row for row in field_rows(traits.MethodTraits)}["random"]
    assert (row.annotation, row.default) == ("bool | Condition", "False")
    assert row.meaning == "two seeds give two outputs: always, or under a condition"
    assert f"| `random` | `bool \\| Condition` | `False` | {row.meaning} |" in traits_markdown()
    assert "| `version` | `int` | required | raised whenever" in traits_markdown()


def test_the_tables_in_contributing_are_up_to_date() -> None:
    assert not TRAITS.renew(ROOT, traits_markdown(), check=True), "run make register"


def test_a_block_is_replaced_between_its_marks_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / BLOCK.page
    page.write_text(f"before\n{BLOCK.start}\n{BLOCK.end}\nafter\n")
    assert BLOCK.renew(tmp_path, "12", check=True)
    assert "PAGE.md: the numbers block is out of date; run `python" in capsys.readouterr().out
    assert "12" not in page.read_text()
    assert BLOCK.renew(tmp_path, "12", check=False)
    assert page.read_text() == f"before\n{BLOCK.start}\n\n12\n{BLOCK.end}\nafter\n"
    assert not BLOCK.renew(tmp_path, "12", check=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["nothing", BLOCK.start, BLOCK.end, f"{BLOCK.end}\n{BLOCK.start}"])
def test_a_page_without_marks_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / BLOCK.page).write_text(text)
    with pytest.raises(UserError, match=r"PAGE\.md: the lines .* are missing; add them$"):
        BLOCK.renew(tmp_path, "12", check=False)
    assert (tmp_path / BLOCK.page).read_text() == text
