"""SIGKILL at random moments: of the head, of a job, or of all processes at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from workspace import Workspace, make_workspace

from drill.trials import Trial, ends, jobs_of, started, working
from purifiers.core.artifacts import read_json

PAPERS = ("toy", "stages")
VICTIMS = ("head", "job", "group")
SAVES = ("checkpoint", "*.progress.json", "*.npy", "*.npz", "*.parquet", "*.safetensors")
"""Files of an unfinished run that hold work which a kill does not undo."""
INTERVAL = 0.05
"""``checkpoint_seconds`` of the scale ``tiny``."""
WHOLE = "dataset"
"""The stage that is done as a whole: a kill repeats all of it, whatever the interval."""
LONGEST_WAIT = 6.0
"""Seconds after the first job's start within which the kill falls."""


@dataclass
class Kills:
    """What was killed.

    Attributes:
        allowance: seconds that a kill may undo besides the interval, see :func:`allowance`.
        victims: number of kills by victim.
        stages: stages with a run that a kill interrupted.
        undone: seconds of work that a kill undid, per interrupted run with a save.
        unsaved: the same of runs that were killed before their first save: the time since their
            start.
    """

    allowance: float
    victims: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    stages: set[str] = field(default_factory=set)
    undone: list[float] = field(default_factory=list)
    unsaved: list[float] = field(default_factory=list)

    def observe(self, runs: Path, killed: Collection[int]) -> list[str]:
        """Note how much work the end of some processes undoes.

        A run counts only while one of the processes holds its lock, which is written at its start.
        An orphan of an earlier kill, which goes on, and runs that wait for their next start lose
        nothing.

        Args:
            runs: the folder of all runs.
            killed: ids of the processes.

        Returns:
            One line per run of which more than interval and allowance is undone.
        """
        now, lines = time.time(), []
        for lock in runs.glob("*/*/.lock"):
            folder, holder = lock.parent, lock.read_text()
            held = any(holder.startswith(f"process {pid} ") for pid in killed)
            if not held or (folder / "run.json").exists():
                continue
            stage, begun = folder.parent.name, lock.stat().st_mtime
            self.stages.add(stage)
            saves = [_date(path) for name in SAVES for path in folder.rglob(name)]
            seconds = max(0.0, now - max([begun, *saves]))
            if stage == WHOLE:
                continue
            saved = any(date > begun for date in saves)
            (self.undone if saved else self.unsaved).append(seconds)
            if seconds > INTERVAL + self.allowance:
                since = "its last save" if saved else "its start"
                lines.append(f"{stage} {folder.name}: killed {seconds:.1f} s after {since}")
        return lines


def allowance(finished: Workspace) -> float:
    """Half of the longest undisturbed run, in seconds.

    Within it fall the start of a run (reading, first call), the one step or batch that no save
    divides, and waiting for a processor; all of them are longer on a slow machine, and so is the
    longest run. A run without saves would lose more than this in every second kill. Our choice.
    """
    records = finished.runs.glob("*/*/run.json")
    longest = max(read_json(path)["elapsed_seconds"] for path in records if path.parts[-3] != WHOLE)
    return longest / 2


def kills(
    folder: Path,
    expected: dict[str, bytes],
    count: int,
    draw: random.Random,
    log: Kills,
    papers: Sequence[str] = PAPERS,
) -> Iterator[Trial]:
    """Kill ``count`` times; a workspace that has finished meanwhile is judged and begun anew.

    A reproduction whose results are right is ``repeated`` if a kill undid too much.
    """
    done = 0
    while done < count:
        shutil.rmtree(folder, ignore_errors=True)
        workspace = make_workspace(folder, *papers)
        before, too_much = done, list[str]()
        while done < count:
            victim = _kill(workspace, draw.choice(VICTIMS), draw, log, too_much)
            if not victim:
                break
            log.victims[victim] += 1
            done += 1
        trial = ends(workspace, expected, "SIGKILL", f"{done - before} kills of one reproduction")
        if too_much and trial.outcome == "continued":
            trial = replace(trial, outcome="repeated", message="; ".join(too_much))
        yield trial


def _kill(
    workspace: Workspace, wanted: str, draw: random.Random, log: Kills, too_much: list[str]
) -> str:
    """Start the command and kill it at work.

    Returns:
        What was killed: without a job, all processes instead of a job; empty if the command ended
        before.
    """
    process = started(workspace)
    if not working(process):
        return ""
    until = time.monotonic() + draw.uniform(0.0, LONGEST_WAIT)
    while time.monotonic() < until:
        if process.poll() is not None:
            return ""
        time.sleep(0.01)
    jobs = jobs_of(process.pid)
    victim = "group" if wanted == "job" and not jobs else wanted
    killed = {"head": [], "job": [draw.choice(jobs)] if jobs else [], "group": jobs}[victim]
    too_much += log.observe(workspace.runs, [job.pid for job in killed])
    if victim == "job":
        killed[0].kill()
        process.communicate()  # the head notices, finishes other jobs and ends
    elif victim == "head":
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return victim


def _date(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # renamed or removed meanwhile
        return 0.0
