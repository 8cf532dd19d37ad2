"""SIGKILL at random moments: of the head, of a job, or of all processes at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workspace import Workspace, make_workspace

from drill.trials import Trial, ends, jobs_of, started, working

PAPERS = ("toy", "stages")
VICTIMS = ("head", "job", "group")
CHECKPOINTS = ("checkpoint", "*.progress.json")
LONGEST_WAIT = 6.0
"""Seconds after the first job's start within which the kill falls."""


@dataclass
class Kills:
    """What was killed.

    Attributes:
        victims: number of kills by victim.
        stages: stages with an unfinished run at a kill.
        lost_seconds: age of the newest checkpoint of each run that a kill interrupted.
    """

    victims: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    stages: set[str] = field(default_factory=set)
    lost_seconds: list[float] = field(default_factory=list)


def kills(
    folder: Path,
    expected: dict[str, bytes],
    count: int,
    draw: random.Random,
    log: Kills,
    papers: Sequence[str] = PAPERS,
) -> Iterator[Trial]:
    """Kill ``count`` times; a workspace that has finished meanwhile is judged and begun anew."""
    done = 0
    while done < count:
        shutil.rmtree(folder, ignore_errors=True)
        workspace = make_workspace(folder, *papers)
        inside = 0
        while done < count:
            victim = draw.choice(VICTIMS)
            if not _kill(workspace, victim, draw, log):
                break
            log.victims[victim] += 1
            done, inside = done + 1, inside + 1
        yield ends(workspace, expected, "SIGKILL", f"{inside} kills of one reproduction")


def _kill(workspace: Workspace, victim: str, draw: random.Random, log: Kills) -> bool:
    """Start the command and kill it at work; False if it ended before."""
    process = started(workspace)
    if not working(process):
        return False
    until = time.monotonic() + draw.uniform(0.0, LONGEST_WAIT)
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    _observe(workspace, log)
    jobs = jobs_of(process.pid)
    if victim == "job" and jobs:
        draw.choice(jobs).kill()
        process.communicate()  # the head notices, finishes other jobs and ends
    elif victim == "head":
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _observe(workspace: Workspace, log: Kills) -> None:
    now = time.time()
    for folder in workspace.runs.glob("*/*-*/"):
        if folder.parent.name == "batches" or (folder / "run.json").exists():
            continue
        log.stages.add(folder.parent.name)
        saved = [path.stat().st_mtime for name in CHECKPOINTS for path in folder.glob(name)]
        if saved:
            log.lost_seconds.append(max(0.0, now - max(saved)))
