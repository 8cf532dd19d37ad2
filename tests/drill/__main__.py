"""Run the drill and write its table: ``make drill SEED=0 KILLS=50``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

from workspace import ROOT, make_workspace

from drill.artefacts import artefacts
from drill.kills import PAPERS, Kills, kills
from drill.surroundings import surroundings
from drill.trials import Outcome, Trial

NUMBERS = (".csv", ".md", ".tex", ".parquet")
"""Endings of the files that hold numbers of the tables."""


def run(folder: Path, seed: int, count: int, disks: int, log: Kills) -> Iterator[Trial]:
    """Yield the trials of a whole drill.

    Args:
        folder: where the workspaces are made.
        seed: decides moments and places.
        count: number of kills.
        disks: number of full disks.
        log: is filled with what was killed.
    """
    draw = random.Random(seed)
    finished = make_workspace(folder / "finished", *PAPERS)
    done = finished.snakemake()
    if done.returncode != 0:
        raise RuntimeError(done.stdout)
    expected = finished.results()
    spoiled = folder / "spoiled"
    yield from kills(spoiled, expected, count, draw, log)
    # a damaged file that nothing reads again stays damaged
    numbers = {name: content for name, content in expected.items() if name.endswith(NUMBERS)}
    yield from artefacts(finished, spoiled, numbers, draw)
    yield from surroundings(finished, spoiled, expected, draw, disks)


def report(trials: Sequence[Trial], log: Kills, seed: int, minutes: float) -> str:
    """The drill's table as Markdown."""
    lines = [
        "# Drill",
        "",
        f"Faults at random moments and places, seed {seed}, {minutes:.0f} minutes; written by "
        "`make drill`. After each fault the same command is started again.",
        "",
        "| Fault | Tried | Continued | Refused in one line | Unclear | Wrong numbers |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(trial.kind for trial in trials):
        outcomes = [trial.outcome for trial in trials if trial.kind == kind]
        counts = [outcomes.count(outcome) for outcome in get_args(Outcome)]
        lines.append(f"| {kind} | {' | '.join(map(str, [len(outcomes), *counts]))} |")
    victims = ", ".join(f"{count} of the {victim}" for victim, count in log.victims.items())
    lost = sorted(log.lost_seconds) or [0.0]
    lines += [
        "",
        "- Continued: the same results, to the byte. Refused: a line names the place and the mend; "
        "after following it, the same results.",
        f"- SIGKILL: a trial is a whole reproduction; {sum(log.victims.values())} kills in all: "
        f"{victims}. Interrupted stages: {', '.join(sorted(log.stages))}.",
        f"- Work since the last checkpoint of an interrupted run: median {median(lost):.2f} s, at "
        f"most {lost[-1]:.2f} s; the interval is 0.05 s, and no step or batch is divided.",
    ]
    for trial in trials:
        if trial.outcome in ("unclear", "wrong"):
            text = " ".join(trial.message.split())[-300:]
            lines.append(f"- {trial.outcome}: {trial.kind}, {trial.place}: {text}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--disks", type=int, default=8)
    arguments = parser.parse_args()
    log, trials, began = Kills(), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for trial in run(Path(folder), arguments.seed, arguments.kills, arguments.disks, log):
            trials.append(trial)
            print(
                f"{trial.outcome:<10} {trial.kind}: {trial.place} {trial.message[:300]}", flush=True
            )
    minutes = (time.monotonic() - began) / 60
    path = ROOT / "results" / "tables" / "drill.md"
    path.write_text(report(trials, log, arguments.seed, minutes))
    return int(any(trial.outcome in ("unclear", "wrong") for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
