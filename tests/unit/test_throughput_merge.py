"""``python -m purifiers measure --from selfcheck.json``: what is merged, kept and refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from purifiers.__main__ import main
from purifiers.plan.throughput import Measurement, Throughput

OLD, NEW = "toy(width=2)@1x8x8", "toy(width=4)@1x8x8"
BEFORE = {
    OLD: {
        "macs": 50,
        "measured": [
            {"device": "cpu", "precision": "float32", "forward": 1.0},
            {"device": "h200", "precision": "float32", "both": 5.0, "source": "by hand"},
            {"device": "h200", "precision": "tf32", "forward": 3.0},
            {"device": "a100", "precision": "float32", "forward": 4.0},
        ],
    }
}


def row(**changes: Any) -> dict[str, Any]:
    fixed = {"device": "h200", "precision": "float32", "forward": 0.1, "both": 0.3, "batch": 32}
    return {**fixed, **changes}


REPORT: dict[str, Any] = {
    "kind": "h200", "device": "cuda", "lines": [], "counts": {},
    "throughput": {
        OLD: {"macs": 50, "measured": [row(), row(batch=128), row(precision="bfloat16")]},
        NEW: {"macs": 70, "measured": [row()]},
    },
}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("workflow/scales", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "workflow" / "throughput.yaml").write_text(yaml.safe_dump(BEFORE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(content: str) -> int:
    Path("selfcheck.json").write_text(content)
    return main(["measure", "--from", "selfcheck.json"])


def test_rows_of_the_device_and_precision_are_replaced(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merged(json.dumps(REPORT)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{OLD}: 3 rows of h200, 1 replaced",
        f"{NEW}: 1 rows of h200, 0 replaced",
    ]
    known = Throughput.load(repository)
    assert known.macs == {OLD: 50, NEW: 70}
    assert known.measured[NEW] == (Measurement(**row()),)
    assert known.measured[OLD] == (
        Measurement("cpu", forward=1.0),
        Measurement("h200", "tf32", forward=3.0),
        Measurement("a100", forward=4.0),
        Measurement(**row()),
        Measurement(**row(batch=128)),
        Measurement(**row(precision="bfloat16")),
    )
    once = (repository / "workflow" / "throughput.yaml").read_text()
    assert once.startswith("# Measured passes") and merged(json.dumps(REPORT)) == 0
    assert (repository / "workflow" / "throughput.yaml").read_text() == once


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    report = copy.deepcopy(REPORT)
    change(report)
    return json.dumps(report)


def in_last(**changes: Any) -> str:
    return changed(lambda report: report["throughput"][NEW]["measured"][0].update(changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(REPORT)[:-9], "not readable as JSON"),
        ("[1]", "not a file of python -m purifiers selfcheck"),
        (json.dumps({"kind": "h200", "throughput": {}}), "not a file of python -m purifiers"),
        (changed(lambda report: report.pop("throughput")), "throughput measured nothing"),
        (changed(lambda report: report.update(throughput=[1])), "is damaged"),
        (changed(lambda report: report["throughput"].update(x=report["throughput"][NEW])), "a net"),
        (changed(lambda report: report["throughput"].update({NEW: 3})), "needs a network's key"),
        (changed(lambda report: report["throughput"][NEW].update(macs="7")), "macs and measured"),
        (changed(lambda report: report["throughput"][OLD].update(macs=51)), "51 multiply-adds"),
        (changed(lambda report: report["throughput"][NEW].update(measured=[3])), "no measurement"),
        (in_last(both=0.05), "h200, float32, 32 images: a forward pass takes 0.1 s, forward"),
        (in_last(forward=-1.0), "in seconds above 0"),
        (in_last(forward=float("nan")), "forward is not a number"),
        (in_last(both="3"), "both is not a number"),
        (in_last(batch=0), "batch is not a number of images"),
        (in_last(device="a100"), "device is not the file's h200"),
        (in_last(precision="int8"), "precision 'int8' is not one of"),
        (in_last(precision=["tf32"]), "precision is not a name"),
        (in_last(seconds=3), "unknown seconds"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_in_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = repository / "workflow" / "throughput.yaml"
    before = path.read_text()
    assert merged(content) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: selfcheck.json: ") and message in line
    assert path.read_text() == before


@pytest.mark.parametrize("rest", [["aid/table_3"], ["--precision", "tf32"]])
def test_a_part_of_the_file_cannot_be_asked_for(
    repository: Path, capsys: pytest.CaptureFixture[str], rest: list[str]
) -> None:
    assert main(["measure", "--from", "missing.json"]) == 2
    assert "missing.json: no such file; run" in capsys.readouterr().err
    assert main(["measure", *rest, "--from", "missing.json"]) == 2
    assert "drop documents and --precision" in capsys.readouterr().err
