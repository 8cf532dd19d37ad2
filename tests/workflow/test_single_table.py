"""One table runs its own runs, once; planning everything is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE_2 = "results/tables/tiny/toy/table_2.csv"
PICTURE = "results/tables/tiny/toy/table_2_images.png"

PLAN_PAPER_SCALE = """
import json, resource, sys
from purifiers.__main__ import main
status = main(["plan", "--scale", "paper"])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "torchvision", "pandas", "sklearn"} & set(sys.modules))
seconds = used.ru_utime + used.ru_stime
# not ru_maxrss: a child inherits its parent's peak
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
kibibytes = int(peak.split()[1])
print(json.dumps({"status": status, "seconds": seconds, "kibibytes": kibibytes, "heavy": heavy}))
"""


def folders(workspace: Any) -> dict[str, int]:
    """Number of finished runs per stage."""
    found: dict[str, int] = {}
    for record in workspace.runs.glob("*/*/run.json"):
        stage = record.parent.parent.name
        found[stage] = found.get(stage, 0) + 1
    return found


def planned(workspace: Any) -> dict[str, int]:
    """Runs to do per document, as ``plan`` tells them; the key ``total`` has those of all."""
    told = workspace.run("purifiers", "plan", "--scale", "tiny")
    assert told.returncode == 0, told.stderr
    rows = [line.split() for line in told.stdout.splitlines()[2:]]
    return {row[0]: int(row[-4]) for row in rows if row[0] == "total" or "/" in row[0]}


def test_one_table(workspace: Any, undisturbed: Any) -> None:
    assert planned(workspace) == {"toy/table_1": 19, "toy/table_2": 5, "total": 19}
    done = workspace.snakemake(TABLE_2)
    assert done.returncode == 0, done.stdout
    assert folders(workspace) == {"dataset": 1, "classifier": 1, "attack": 1, "score": 2}
    found, everything = workspace.results(), undisturbed.results()
    assert {name for name in found if name.startswith("tables/")} == {
        f"tables/tiny/toy/table_2.{suffix}" for suffix in ("csv", "md", "tex")
    }
    for name, content in found.items():  # table 1 finds the same runs at the same place
        assert content == everything[name]
    assert planned(workspace) == {"toy/table_1": 14, "toy/table_2": 0, "total": 14}

    before = workspace.state()
    again = workspace.snakemake(TABLE_2)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout
    assert workspace.state() == before


def test_tables_share_folders(undisturbed: Any) -> None:
    """Every cell of table 2 is one of table 1: nothing is there twice."""
    assert folders(undisturbed) == {
        **{"dataset": 1, "classifier": 2, "purifier": 2},
        **{"attack": 2, "purify": 4, "score": 8},
    }
    specs = [path.read_text() for path in undisturbed.runs.glob("*/*/run.json")]
    assert len({json.dumps(json.loads(text)["spec"], sort_keys=True) for text in specs}) == 19


def test_nothing_runs_twice(finished: Any) -> None:
    before = finished.state()
    done = finished.snakemake()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    assert finished.state() == before


def test_snakemakes_report_has_tables_pictures_and_claims(finished: Any) -> None:
    done = finished.snakemake("--report", "report.zip")
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(finished.path / "report.zip") as report:
        names = {Path(name).name for name in report.namelist()}
        (picture,) = (name for name in report.namelist() if name.endswith("/table_2_images.png"))
        assert report.read(picture) == finished.path.joinpath(PICTURE).read_bytes()
    assert {"report.html", "table_1.csv", "table_2.csv", "claims.csv"} <= names


def test_table_written_early_is_not_taken_for_finished(finished: Any, undisturbed: Any) -> None:
    """``report`` may be called at any time; it must not make Snakemake skip what is missing."""
    score = finished.folder("score", "*-natural-clean-s0-*")
    for path in (*score.iterdir(), score):
        path.unlink() if path.is_file() else path.rmdir()
    assert finished.run("purifiers", "report", "--scale", "tiny").returncode == 0
    assert finished.results() != undisturbed.results()
    before = finished.state()
    done = finished.snakemake(TABLE_2)
    assert done.returncode == 0, done.stdout
    name = "tables/tiny/toy/table_2.csv"
    assert finished.results()[name] == undisturbed.results()[name]
    after = finished.state()
    for name in before:  # one table's jobs are cut differently; finished runs are not done again
        assert not name.endswith("run.json") or after[name] == before[name]


@pytest.fixture(scope="module")
def paper_scale() -> subprocess.CompletedProcess[str]:
    """Plan all papers of this repository at the papers' own scale, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PLAN_PAPER_SCALE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_planning_everything_is_cheap(paper_scale: subprocess.CompletedProcess[str]) -> None:
    assert paper_scale.returncode == 0, paper_scale.stderr
    used = json.loads(paper_scale.stdout.splitlines()[-1])
    assert used["status"] == 0
    assert used["seconds"] < 30
    assert used["kibibytes"] < 2**20
    assert used["heavy"] == []


def test_planning_tells_the_price_of_every_document(
    paper_scale: subprocess.CompletedProcess[str],
) -> None:
    files = (ROOT / "benchmarks").glob("*/*.yaml")
    documents = {
        f"{path.parent.name}/{path.stem}" for path in files if path.stem not in ("paper", "claims")
    }
    told = {line.split()[0] for line in paper_scale.stdout.splitlines() if line}
    assert len(documents) > 50
    assert documents <= told
