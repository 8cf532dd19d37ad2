"""What is said about work under way, and when."""

from __future__ import annotations

import pytest

from purifiers.core import progress
from purifiers.core.progress import Progress, duration


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3599.7, "1:00:00"), (3700, "1:01:40")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier start's work is done, but not part of the rate; nothing is said too often."""
    told = Progress("attack", 100, done=20, interval=10.0)
    clock.now += 9.0
    told.add(10)
    assert capsys.readouterr().err == ""
    clock.now += 1.0
    told.add(10, "loss 2")
    assert capsys.readouterr().err == "attack: 40/100 images, 2 images/s, 0:30 left, loss 2\n"
    clock.now += 9.0
    told.add(10)
    assert capsys.readouterr().err == ""


def test_a_slow_start_is_forgotten(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenth of the speed for ten minutes, then two minutes of the rest."""
    told = Progress("fit", 10000, unit="steps", interval=10.0)
    for rate, seconds in ((1, 600), (10, 120)):
        for _ in range(seconds // 10):
            clock.now += 10.0
            told.add(10 * rate)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "fit: 1800/10000 steps, 10 steps/s, 13:40 left"


def test_steps_longer_than_the_window(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("attack", 30)
    for _ in range(2):
        clock.now += 200.0
        told.add(10)
    assert capsys.readouterr().err.endswith("20/30 images, 0.05 images/s, 3:20 left\n")


def test_what_may_end_early_says_so(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    told = Progress("fit", 20, at_most=True)
    clock.now += 20.0
    told.add(0)
    told.add(10)
    clock.now += 20.0
    told.add(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fit: 0/20 images, 0 images/s, ? left",
        "fit: 20/20 images, 0.5 images/s, at most 0:00 left",
    ]
