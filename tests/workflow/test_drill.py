"""The drill in short: some kills, some damaged files, a second head and a clock set back."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from drill.__main__ import NUMBERS
from drill.artefacts import artefacts
from drill.kills import Kills, kills
from drill.surroundings import clock_set_back
from workspace import Workspace

PAPER = "toy"
SEED = 1
"""Decides moments and places, as far as the machine's speed does not."""


def test_kills_change_no_byte(undisturbed: Workspace, tmp_path: Path) -> None:
    draw, log = random.Random(SEED), Kills()
    trials = list(kills(tmp_path / "killed", undisturbed.results(), 3, draw, log, [PAPER]))
    assert sum(log.victims.values()) == 3
    assert {trial.outcome for trial in trials} == {"continued"}, trials


def test_no_damaged_file_is_believed(undisturbed: Workspace, tmp_path: Path) -> None:
    numbers = {n: content for n, content in undisturbed.results().items() if n.endswith(NUMBERS)}
    trials = list(artefacts(undisturbed, tmp_path / "spoiled", numbers, random.Random(SEED), 5))
    outcomes = Counter(trial.outcome for trial in trials)
    assert len(trials) >= 4
    assert outcomes["continued"] + outcomes["refused"] == len(trials), trials


def test_a_clock_that_was_set_back_stops_nothing(undisturbed: Workspace, tmp_path: Path) -> None:
    trial = clock_set_back(undisturbed, tmp_path / "clock", undisturbed.results())
    assert trial.outcome == "continued", trial
