"""The drill in short: kills, damaged files, a second head, no room and files from tomorrow."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from drill.__main__ import NUMBERS, report
from drill.artefacts import artefacts, tables, unfinished
from drill.kills import INTERVAL, Kills, allowance, kills
from drill.surroundings import files_from_tomorrow, no_room, two_heads
from drill.trials import Trial
from workspace import Workspace

PAPER = "toy"
SEED = 1
"""Decides moments and places, as far as the machine's speed does not."""


def test_kills_change_no_byte(undisturbed: Workspace, tmp_path: Path) -> None:
    draw, log = random.Random(SEED), Kills(allowance(undisturbed))
    trials = list(kills(tmp_path / "killed", undisturbed.results(), 3, draw, log, [PAPER]))
    assert sum(log.victims.values()) == 3
    # "repeated" compares times, which tests that share the processors stretch; judged below
    assert {trial.outcome for trial in trials} <= {"continued", "repeated"}, trials


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(("seconds", "too_much"), [(0.5, False), (2.0, True)])
def test_a_kill_that_undoes_too_much_is_noticed(
    tmp_path: Path, saved: bool, seconds: float, too_much: bool
) -> None:
    """The run began 10 s before its last save, or it has none."""
    run = tmp_path / "attack" / "run-1"
    run.mkdir(parents=True)
    lock, save = run / ".lock", run / "images.npy.progress.json"
    lock.write_text("process 7 on host")
    last = time.time() - INTERVAL - seconds
    os.utime(lock, (last - 10, last - 10) if saved else (last, last))
    if saved:
        save.touch()
        os.utime(save, (last, last))
    log = Kills(allowance=1.0)
    assert log.observe(tmp_path, [8]) == [] and not log.stages
    assert bool(log.observe(tmp_path, [7])) == too_much
    (seen,) = log.undone if saved else log.unsaved
    assert seen == pytest.approx(INTERVAL + seconds, abs=0.4)
    assert not (log.unsaved if saved else log.undone)


def test_no_damaged_file_is_believed(undisturbed: Workspace, tmp_path: Path) -> None:
    numbers = {n: content for n, content in undisturbed.results().items() if n.endswith(NUMBERS)}
    trials = list(artefacts(undisturbed, tmp_path / "spoiled", numbers, random.Random(SEED), 3))
    assert len(trials) >= 2
    assert_survived(trials)


def test_no_damaged_table_is_believed(undisturbed: Workspace, tmp_path: Path) -> None:
    trials = list(tables(undisturbed, tmp_path / "spoiled", random.Random(SEED), 4))
    assert len(trials) >= 3
    assert_survived(trials)


def test_no_damaged_unfinished_run_is_believed(undisturbed: Workspace, tmp_path: Path) -> None:
    expected, draw = undisturbed.results(), random.Random(SEED)
    (trial,) = unfinished(undisturbed, tmp_path / "spoiled", expected, draw, 1)
    assert_survived([trial])


@pytest.mark.parametrize("kind", ["checkpoint", "table"])
def test_no_room_is_one_line(undisturbed: Workspace, tmp_path: Path, kind: str) -> None:
    trial = no_room(undisturbed, tmp_path / "small", undisturbed.results(), kind)
    assert trial.outcome == "refused", trial


def test_a_second_head_changes_no_byte(undisturbed: Workspace, tmp_path: Path) -> None:
    trial = two_heads(tmp_path / "two", undisturbed.results(), 0.0, [PAPER])
    assert_survived([trial])


def test_files_from_tomorrow_stop_nothing(undisturbed: Workspace, tmp_path: Path) -> None:
    trial = files_from_tomorrow(undisturbed, tmp_path / "clock", undisturbed.results())
    assert trial.outcome == "continued", trial


def test_the_report_names_what_was_not_tried() -> None:
    trials = [Trial("disk full", "", "not tried", "needs root"), Trial("SIGKILL", "", "repeated")]
    lines = report(trials, Kills(allowance=1.0), seed=0, minutes=1).splitlines()
    assert "- **Not tried: disk full.** needs root." in lines
    assert "| SIGKILL | 1 | 0 | 0 | 0 | 1 | 0 |" in lines
    assert not any(line.startswith("| disk full") for line in lines)


def assert_survived(trials: list[Trial]) -> None:
    outcomes = Counter(trial.outcome for trial in trials)
    assert outcomes["continued"] + outcomes["refused"] == len(trials), trials
