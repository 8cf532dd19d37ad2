"""Run the drill and write its table: ``make drill SEED=0 KILLS=50``."""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

from workspace import ROOT, make_workspace

from drill.artefacts import artefacts, tables, unfinished
from drill.kills import INTERVAL, PAPERS, Kills, allowance, kills
from drill.surroundings import surroundings
from drill.trials import GOOD, Outcome, Trial
from purifiers.core.parameters import argument

NUMBERS = (".csv", ".md", ".tex", ".parquet")
"""Endings of the files that hold numbers of the tables."""


_FILE = re.compile(r"results/\S*?([^/\s]+): ")
COUNTED = [outcome for outcome in get_args(Outcome) if outcome != "not tried"]
"""Columns of the report."""


def run(folder: Path, seed: int, count: int, disks: int, log: Kills) -> Iterator[Trial]:
    """Yield the trials of a whole drill.

    Args:
        folder: where the workspaces are made.
        seed: decides moments and places.
        count: number of kills.
        disks: number of full disks, of evenly spaced sizes.
        log: is filled with what was killed.
    """
    draw = random.Random(seed)
    finished = make_workspace(folder / "finished", *PAPERS)
    done = finished.snakemake()
    if done.returncode != 0:
        raise RuntimeError(done.stdout)
    expected = finished.results()
    log.allowance = allowance(finished)
    spoiled = folder / "spoiled"
    yield from kills(spoiled, expected, count, draw, log)
    # a damaged file that no unfinished run reads stays damaged; no new number comes from it
    numbers = {name: content for name, content in expected.items() if name.endswith(NUMBERS)}
    yield from artefacts(finished, spoiled, numbers, draw)
    yield from unfinished(finished, spoiled, expected, draw)
    yield from tables(finished, spoiled, draw)
    yield from surroundings(finished, spoiled, expected, draw, disks)


def report(trials: Sequence[Trial], log: Kills, seed: int, minutes: float) -> str:
    """The drill's table as Markdown."""
    lines = [
        "# Drill",
        "",
        f"Faults at random moments and places, seed {seed}, {minutes:.0f} minutes; written by "
        "`make drill`. After each fault the same command is started again.",
        "",
        "| Fault | Tried | Continued | Refused in one line | Unclear | Repeated too much | Wrong |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    tried = [trial for trial in trials if trial.outcome != "not tried"]
    for kind in dict.fromkeys(trial.kind for trial in tried):
        outcomes = [trial.outcome for trial in tried if trial.kind == kind]
        counts = [outcomes.count(outcome) for outcome in COUNTED]
        lines.append(f"| {kind} | {' | '.join(map(str, [len(outcomes), *counts]))} |")
    lines.append("")
    for trial in trials:
        if trial.outcome == "not tried":
            lines.append(f"- **Not tried: {trial.kind}.** {trial.message}.")
    victims = ", ".join(f"{count} of the {victim}" for victim, count in log.victims.items())
    hit = dict.fromkeys(t.place.split(",")[0] for t in tried if t.kind == "file too large")
    full = {name for t in tried if t.kind == "disk full" for name in _FILE.findall(t.message)}
    damaged = dict.fromkeys(t.place for t in tried if t.kind.startswith("file ") and t.place)
    lines += [
        "- Continued: the same results, to the byte. Refused: a line names the place and the mend; "
        "after following it, the same results. Wrong: other results without an error.",
        f"- SIGKILL: a trial is a whole reproduction; {sum(log.victims.values())} kills in all: "
        f"{victims}. Interrupted stages: {', '.join(sorted(log.stages))}.",
        "- Work that a kill undid in an interrupted run: since its last save "
        f"{_spread(log.undone)}; since its start, before the first save, {_spread(log.unsaved)}. "
        f"More than {INTERVAL} s (the interval) and {log.allowance:.1f} s (half of the longest "
        "undisturbed run, for the start of a run, a step or batch, and waiting) counts as repeated "
        "too much. A data set is prepared as a whole and not judged.",
        f"- Damaged files: {', '.join(place for place in damaged if ' bytes' not in place)}. A CSV "
        "is written again by the same command, what is made from it by `python -m purifiers "
        "report`. With runs elsewhere, the report keeps the values of the CSV.",
        f"- File too large: a limit below the size of one kind of file, in turn: {', '.join(hit)}.",
        f"- Disk full: evenly spaced sizes; refused at {', '.join(sorted(full)) or 'no file'}.",
        "- Files dated tomorrow: only the dates of finished files, not the clock.",
    ]
    for trial in trials:
        if trial.outcome not in GOOD:
            text = " ".join(trial.message.split())[-300:]
            lines.append(f"- {trial.outcome}: {trial.kind}, {trial.place}: {text}")
    return "\n".join(lines) + "\n"


def _spread(seconds: Sequence[float]) -> str:
    """Number, median and maximum of some times."""
    if not seconds:
        return "no run"
    return f"median {median(seconds):.2f} s, at most {max(seconds):.2f} s ({len(seconds)} runs)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=argument("Count"), default=50)
    parser.add_argument("--disks", type=argument("Whole"), default=8, help="number of full disks")
    arguments = parser.parse_args()
    log, trials, began = Kills(allowance=0.0), list[Trial](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for trial in run(Path(folder), arguments.seed, arguments.kills, arguments.disks, log):
            trials.append(trial)
            print(
                f"{trial.outcome:<10} {trial.kind}: {trial.place} {trial.message[:300]}", flush=True
            )
    minutes = (time.monotonic() - began) / 60
    path = ROOT / "results" / "tables" / "drill.md"
    path.write_text(report(trials, log, arguments.seed, minutes))
    return int(any(trial.outcome not in GOOD for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
