"""The generated blocks of pages are up to date, and links lead to existing files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from purifiers.plan.plan import Plan
from purifiers.plan.scale import load_scale
from purifiers.report import reports
from purifiers.report.reports import STATUS, TRAITS, write_status

ROOT = Path(__file__).resolve().parents[2]


def test_status_and_traits_are_up_to_date(
    plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "make_plan", lambda _, scale: plans[scale])
    assert write_status(ROOT, check=True) == 0, "run python -m purifiers status"


def test_a_new_table_makes_the_status_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    shutil.copy(ROOT / TRAITS.page, tmp_path)
    (tmp_path / "benchmarks/aid").mkdir(parents=True)
    documents = load_scale(ROOT, "desk").declared["papers"]["aid"]["documents"]
    for name in ("paper", "table_1", *documents):
        shutil.copy(ROOT / f"benchmarks/aid/{name}.yaml", tmp_path / "benchmarks/aid")
    page = tmp_path / STATUS.page
    page.write_text(f"before\n{STATUS.start}\nold\n{STATUS.end}\nafter\n")
    assert write_status(tmp_path, check=False) == 0
    assert write_status(tmp_path, check=True) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| table 1 |" in text
    table = tmp_path / "results/tables/paper/aid/table_1.csv"
    table.parent.mkdir(parents=True)
    table.write_text("row,reproduced\nno_attack,99.5\n")
    assert write_status(tmp_path, check=True) == 1
    out = capsys.readouterr().out
    assert "README.md: the status block is out of date; run `python -m purifiers status`" in out
    assert page.read_text() == text


def test_links_lead_somewhere() -> None:
    """Links inside the repository, from every page beside the code."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert len(links) > 10
    dangling = [
        f"{page.relative_to(ROOT)}: {to}" for page, to in links if not (page.parent / to).exists()
    ]
    assert dangling == []


def test_the_fidelity_page_names_existing_tests() -> None:
    page = (ROOT / "benchmarks/FIDELITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 30
    files = {file: (ROOT / "tests/unit" / file).read_text(encoding="utf-8") for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in files[file]] == []
