"""Measurement of the suite's own code and of a plain loop, in alternated rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from purifiers.report.attack_timing import SUITE
from purifiers.timing import settings
from purifiers.timing.rounds import Alternated, machine


def measured(
    rows: dict[str, Callable[[], Tensor]], device: str, benchmark: Any, pytestconfig: pytest.Config
) -> dict[str, list[float]]:
    """Seconds of each row in each round, in reverse order every other round."""
    one_round = Alternated(rows, device)
    rounds = pytestconfig.getoption("--rounds") or settings.ROUNDS
    benchmark.pedantic(one_round, rounds=rounds, iterations=1)
    return one_round.seconds


def judge(
    benchmark: Any, device: str, seconds: dict[str, list[float]], least: float, **details: Any
) -> None:
    """Store the measurement and require a speed-up above ``least`` on a processor."""
    times = {row: statistics.median(taken) for row, taken in seconds.items()}
    speed_up = times["plain loop"] / times[SUITE]
    benchmark.extra_info.update(details, **machine(device), seconds=seconds, times_faster=speed_up)
    assert device == "cuda" or speed_up > least, f"only {speed_up:.2f} times as fast"
