"""``python -m purifiers selfcheck``: run the sections, print one screen, write selfcheck.json."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from purifiers.core.artifacts import write_json
from purifiers.core.parameters import argument
from purifiers.core.sources import PACKAGE
from purifiers.selfcheck import parity, speed, strength, table, throughput
from purifiers.selfcheck.checks import FAIL, PASS, SKIP, Check, Line, run_section, screen
from purifiers.selfcheck.context import SIZES, Context
from purifiers.selfcheck.machine import described
from purifiers.stages.job import choose_device

SECTIONS: dict[str, tuple[Callable[[Context], Iterable[Check]], float]] = {
    "parity": (parity.checks, 0.25),
    "strength": (strength.checks, 0.45),
    "speed": (speed.checks, 0.75),
    "throughput": (throughput.checks, 0.95),
    "table": (table.checks, 1.0),
}
"""Sections by worth, and the share of the time after which none of its checks starts. Time that a
section leaves goes to the next ones."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 if a check failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m purifiers selfcheck", description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (the default)")
    parser.add_argument("--out", type=Path, default=Path("selfcheck.json"))
    parser.add_argument(
        "--minutes", type=argument("Positive"), default=4.0, help="time limit (default 4)"
    )
    parser.add_argument("--size", choices=tuple(SIZES), help="default: full on cuda, tiny on cpu")
    parser.add_argument("--section", action="append", choices=tuple(SECTIONS), help="repeatable")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    size = SIZES[options.size or ("full" if device == "cuda" else "tiny")]
    report = selfcheck(device, Context(device, size), options.minutes, options.out, options.section)
    return int(report["counts"][FAIL] > 0)


def selfcheck(
    device: str,
    context: Context,
    minutes: float,
    out: Path,
    sections: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run sections, print a screen after each, and write the report after each.

    Args:
        minutes: time limit; a check that runs at the limit is finished.
        out: the JSON file.
        sections: names of ``SECTIONS``; by default all.

    Returns:
        The report, as it is written.
    """
    sys.path.append(str(PACKAGE.parent / ".peers"))  # other libraries, where they are installed
    torch.set_num_threads(1)
    gc.freeze()  # the modules' objects need no collection before each timed row
    started = time.monotonic()
    machine = described(device)
    print(
        f"selfcheck on {machine['card']}, driver {machine['driver'] or '-'}, torch "
        f"{machine['torch']}, commit {machine['git']}",
        flush=True,
    )
    lines: list[Line] = []
    for name, (checks, share) in SECTIONS.items():
        if sections and name not in sections:
            continue
        deadline = started + 60.0 * minutes * share
        of_section = list(run_section(name, checks(context), deadline))
        print(screen(of_section), flush=True)
        lines += of_section
        report = {
            **machine,
            "seconds": round(time.monotonic() - started, 1),
            "counts": _counts(lines),
            "lines": [_stored(line) for line in lines],
            **context.measured,
        }
        write_json(out, report)
    counts = _counts(lines)
    print(
        f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[SKIP]} skipped in "
        f"{time.monotonic() - started:.0f} s; written to {out}",
        flush=True,
    )
    return report


def _counts(lines: Sequence[Line]) -> dict[str, int]:
    statuses = [line.outcome.status for line in lines]
    return {status: statuses.count(status) for status in (PASS, FAIL, SKIP)}


def _stored(line: Line) -> dict[str, Any]:
    return {
        "section": line.section,
        "group": line.group,
        "name": line.name,
        "status": line.outcome.status,
        "reason": line.outcome.reason,
        "seconds": round(line.seconds, 3),
        "numbers": line.outcome.numbers,
    }
