"""The status page is up to date, and links lead to existing files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from purifiers.plan.plan import Plan
from purifiers.report import reports
from purifiers.report.reports import MARKS, STATUS, write_status

ROOT = Path(__file__).resolve().parents[2]


def test_status_is_up_to_date(plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "make_plan", lambda _, scale: plans[scale])
    assert write_status(ROOT, check=True) == 0, "run python -m purifiers status"


def test_a_new_table_makes_the_status_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    (tmp_path / "benchmarks/aid").mkdir(parents=True)
    for file in ("paper.yaml", "table_1.yaml"):
        shutil.copy(ROOT / "benchmarks/aid" / file, tmp_path / "benchmarks/aid")
    (tmp_path / STATUS).write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert write_status(tmp_path, check=False) == 0
    assert write_status(tmp_path, check=True) == 0
    text = (tmp_path / STATUS).read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| table 1 |" in text
    table = tmp_path / "results/tables/paper/aid/table_1.csv"
    table.parent.mkdir(parents=True)
    table.write_text("row,reproduced\nno_attack,99.5\n")
    assert write_status(tmp_path, check=True) == 1
    assert "out of date" in capsys.readouterr().out
    assert (tmp_path / STATUS).read_text() == text


def test_links_lead_somewhere() -> None:
    """Links inside the repository, from every page beside the code."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/README.md")]
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
