"""The display of a workflow, from log records as Snakemake 9.27 sends them."""

from __future__ import annotations

import importlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.plan.workload import PlannedRun, Workload

ROOT = Path(__file__).parents[2]
TABLE = "results/tables/tiny/toy/table_1.csv"


class Screen(io.StringIO):
    """A stream that is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "workflow" / "logger")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return importlib.import_module("snakemake_logger_plugin_purifybench")


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen(request.param)
    monkeypatch.setattr(sys, "stderr", made)
    return made


@pytest.fixture
def handler(plugin: ModuleType, screen: Screen) -> Iterator[Any]:
    made = plugin.LogHandler(SimpleNamespace(dryrun=False), None)
    yield made
    made.close()


def send(handler: Any, event: str | None, msg: str = "", level: int = 20, **values: Any) -> None:
    extra = {"event": event} if event else {}
    handler.handle(logging.makeLogRecord({"msg": msg, "levelno": level, **extra, **values}))


def begin(handler: Any, *seconds: float) -> Path:
    """Announce one job per number and the table's; start the first. Returns its log."""
    folders = [RunFolder(Path("results/runs"), "attack", f"run-{i}") for i in range(len(seconds))]
    runs = [PlannedRun(*pair) for pair in zip(folders, seconds, strict=True)]
    jobs = {f"attack-{i}": [run] for i, run in enumerate(runs)}
    send(handler, None, workload=Workload(jobs))
    send(handler, None, "Select jobs to execute...")
    send(handler, "run_info", stats={"attack": len(jobs), "document": 1, "all": 1, "total": 3})
    log = Path("results/logs/attack/attack-0.log")
    log.parent.mkdir(parents=True)
    log.write_text("error: of an earlier start\n")
    send(handler, "job_started", "Execute 1 jobs...", jobs=[1])
    start(handler, 1, "attack", log, batch="attack-0")
    return log


def start(handler: Any, number: int, rule: str, log: Path, **wildcards: str) -> None:
    values = {"jobid": number, "rule_name": rule, "log": [str(log)], "output": [TABLE]}
    send(handler, "job_info", wildcards=wildcards, **values)


def test_a_workflow_from_beginning_to_end(handler: Any, screen: Screen) -> None:
    log = begin(handler, 10.0)
    line = "attack run-0: 5/10 images, 2 images/s, 0:02 left"
    log.write_text(f"{log.read_text()}{line}\n")
    handler.started = handler.jobs[1].started = time.monotonic() - 100
    handler.show()  # of 10 s and twice 5 s: half of the run, and the start of its job
    assert "0/2 jobs, 50% of the predicted work, 1:40 left" in screen.getvalue()
    row = "attack-0              0/1 runs, 1:40  attack run-0: 5/10 im…"  # 60 columns
    assert (row in screen.getvalue()) is screen.terminal
    RunFolder(Path("results/runs"), "attack", "run-0").path.mkdir(parents=True)
    send(handler, "job_finished", "Finished jobid: 1 (Rule: attack)", job_id=1)
    assert ("finished: attack-0 in 1:40" in screen.getvalue()) is screen.terminal
    start(handler, 2, "document", Path("results/logs/report/table_1.log"))
    send(handler, "job_finished", job_id=2)
    send(handler, "job_finished", job_id=0)  # rule all runs nothing
    handler.close()
    text = screen.getvalue()
    assert f"written: {TABLE}\n" in text and "2/2 jobs in 1:40\n" in text
    assert "Select jobs" not in text and "Execute" not in text and "earlier" not in text
    assert ("\r" in text and "\x1b[2K" in text) is screen.terminal
    if not screen.terminal:
        assert "\x1b" not in text and "\r" not in text and text.count("\n") == 3


def test_errors_of_a_failed_job(handler: Any, screen: Screen) -> None:
    log = begin(handler, 10.0)
    log.write_text(f"{log.read_text()}error: attack run-0: no space\nnoise\n")
    send(handler, "error", "CalledProcessError in file x", level=40, exception="RuleException")
    send(handler, "job_error", level=40, jobid=1)
    send(handler, "error", "WorkflowError:\nAt least one job did not complete", level=40)
    handler.close()
    lines = screen.getvalue().replace("\x1b[2K", "").splitlines()
    assert f"failed: attack-0 after 0:00, see {log}" in "\n".join(lines)
    assert "error: attack run-0: no space" in lines and "WorkflowError:" in "\n".join(lines)
    assert not [line for line in lines if "noise" in line or "earlier" in line or "Called" in line]
    assert "1/2 jobs in 0:00, 1 failed" in lines[-1]


def test_a_job_without_an_error_line_shows_its_last_line(handler: Any, screen: Screen) -> None:
    log = begin(handler, 10.0)
    log.write_text(f"{log.read_text()}first\nKilled\n\n")
    send(handler, "job_error", level=40, jobid=1)
    assert "Killed\n" in screen.getvalue() and "first" not in screen.getvalue()


def test_nothing_to_be_done_is_shown(handler: Any, screen: Screen) -> None:
    send(handler, None, "Building DAG of jobs...")
    send(handler, None, "Nothing to be done (all requested files are present).")
    handler.close()
    assert screen.getvalue() == "Nothing to be done (all requested files are present).\n"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_whole_is_shown_again_and_again(
    plugin: ModuleType, handler: Any, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugin.PLAIN_SECONDS == 30
    monkeypatch.setattr(plugin, "PLAIN_SECONDS", 0.02)
    monkeypatch.setattr(plugin, "REDRAW_SECONDS", 0.02)
    begin(handler, 10.0)
    until(lambda: screen.getvalue().count("0/2 jobs") > 2)
    handler.close()
    size = len(screen.getvalue())
    time.sleep(0.1)
    assert len(screen.getvalue()) == size
