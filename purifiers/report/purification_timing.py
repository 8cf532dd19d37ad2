"""Purification and training beside plain loops: measurements to a table.

A measurement is what ``benchmarks/timing/test_purification.py`` and ``test_training.py`` leave:
pytest-benchmark's JSON, one benchmark per method and case.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.artifacts import write_text
from purifiers.core.errors import UserError
from purifiers.report.attack_timing import SUITE, benchmarks
from purifiers.report.tables import csv_text


def write_speed(measurements: Sequence[Path], out: Path) -> None:
    """Write ``out`` (CSV), and beside it the same as Markdown.

    Raises:
        UserError: a file is not a measurement, or one of them lacks the suite's own row.
    """
    frame = speed_table(measurements)
    write_text(out.with_suffix(".md"), markdown(frame))
    write_text(out, csv_text(frame))


def speed_table(measurements: Sequence[Path]) -> pd.DataFrame:
    """One row per task, method, case, device and library.

    Columns ``seconds`` (median over the rounds, for all ``n_images`` together), ``over_suite`` (the
    ratio of two medians: how many times as long as the suite's own code) and what was measured with
    what.

    Raises:
        UserError: as :func:`write_speed`.
    """
    rows = [row for path in measurements for found in benchmarks(path) for row in _rows(found)]
    if not rows:
        raise UserError("no measurements: run `make bench`")
    return pd.DataFrame(rows)


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    task = "purification" if "purifier" in found else "training"
    method = found["purifier" if "purifier" in found else "method"]
    medians = {library: statistics.median(taken) for library, taken in found["seconds"].items()}
    if SUITE not in medians:
        raise UserError(f"{task} of {method} was measured without the suite's own code")
    return [
        {
            "task": task,
            "method": method,
            "case": found["case"],
            "library": library,
            "device": found["device"],
            "seconds": seconds,
            "over_suite": seconds / medians[SUITE],
            "n_images": found["n_images"],
            "rounds": len(found["seconds"][library]),
            "torch": found["torch"],
            "processor": found["processor"],
            "git": found["git"],
        }
        for library, seconds in medians.items()
    ]


def markdown(frame: pd.DataFrame) -> str:
    """A row per method and case, a column per library."""
    libraries = list(dict.fromkeys(frame["library"]))
    libraries.sort(key=lambda library: library != SUITE)
    told = [f"median of {frame['rounds'].max()} alternated rounds"]
    told += list(dict.fromkeys(frame["processor"]))
    told.append(f"torch {', '.join(dict.fromkeys(frame['torch']))}")
    lines = ["# Purification and training: time beside plain loops", "", f"{'; '.join(told)}.", ""]
    lines += ["Each cell: seconds per image (times as long as the suite's).", ""]
    lines.append(f"| | {' | '.join(libraries)} |")
    lines.append("|:--" + "|--:" * len(libraries) + "|")
    for (task, method, case, device), group in frame.groupby(
        ["task", "method", "case", "device"], sort=False
    ):
        cells = {
            row["library"]: f"{row['seconds'] / row['n_images']:.3g} ({row['over_suite']:.2f})"
            for row in group.to_dict("records")
        }
        texts = [cells.get(library, "") for library in libraries]
        lines.append(f"| {task}, {method}, {case}, {device} | {' | '.join(texts)} |")
    return "\n".join([*lines, ""])
