"""The share of the predicted work and the time left, on numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.plan.workload import PlannedRun, Workload


def planned(root: Path, run: str, seconds: float) -> PlannedRun:
    folder = RunFolder(root, "attack", run)
    folder.path.mkdir(parents=True)
    return PlannedRun(folder, seconds)


def finish(run: PlannedRun) -> None:
    run.folder.record_path.touch()


def test_share_and_time_left(tmp_path: Path) -> None:
    a, b, c = (planned(tmp_path, name, s) for name, s in [("a", 30), ("b", 40), ("c", 15)])
    work = Workload({"one": [a, b], "two": [c]}, n_jobs=3)  # 85 s of runs, 5 s for each of 3 jobs
    assert work.share() == 0 and work.seconds_left(10) is None

    work.update("one", 2, "")
    assert work.share() == pytest.approx(2 / 100)
    work.update("one", 9, "attack a: 10/20 images, 3 images/s, 0:03 left")
    assert work.share() == pytest.approx((5 + 15) / 100)
    assert work.seconds_left(10) == pytest.approx(40)
    assert work.counts("one") == (0, 2)

    finish(a)
    work.update("one", 20, "attack a: 20/20 images, 3 images/s, 0:00 left")  # b has no line yet
    assert work.counts("one") == (1, 2)
    assert work.share() == pytest.approx(35 / 100)
    work.update("one", 20, "attack b, first phase: 8/8 steps, 3 steps/s, 0:00 left")
    assert work.counts("one") == (1, 2) and work.share() < 0.75
    share = work.share()
    work.update("one", 21, "attack b, second phase: 1/8 steps, 3 steps/s, 0:02 left")
    assert work.share() == share  # never falls

    work.finish("one")
    assert work.share() == pytest.approx(75 / 100)
    assert work.seconds_left(60) == pytest.approx(20)
    work.finish("results/tables/tiny/toy/table_1.csv")  # a job without runs
    work.finish("two")
    assert work.share() == 1 and work.seconds_left(80) == 0


def test_a_failed_job_counts_as_done(tmp_path: Path) -> None:
    a = planned(tmp_path, "a", 10)
    work = Workload({"one": [a]}, n_jobs=2)
    work.finish("one")
    assert work.share() == pytest.approx(15 / 20)
