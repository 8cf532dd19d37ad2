"""Compare the time of purification and training with plain loops, as a table.

A measurement is a file that ``test_purification.py``, ``test_transformations.py`` and
``test_training.py`` in ``benchmarks/timing`` write: pytest-benchmark's JSON, one benchmark per
method and case.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.artifacts import write_text
from purifiers.core.errors import UserError
from purifiers.report.attack_timing import SUITE, benchmarks
from purifiers.report.tables import csv_text


def write_speed(measurements: Sequence[Path], out: Path) -> None:
    """Write the measurements as ``out`` (CSV) and Markdown beside it.

    Raises:
        UserError: there are no measurements, a file is not one, or a benchmark lacks the suite's
            own code.
    """
    write_loops(speed_table(measurements), out)


def write_loops(frame: pd.DataFrame, out: Path) -> None:
    """Write a table of :func:`tabulated` as ``out`` (CSV) and Markdown beside it."""
    write_text(out.with_suffix(".md"), markdown(frame))
    write_text(out, csv_text(frame))


def speed_table(measurements: Sequence[Path]) -> pd.DataFrame:
    """Tabulate the measurements: one row per task, method, case, device and library.

    Columns: ``seconds`` (median over the rounds, for all ``n_images`` together), ``over_suite``
    (ratio to the median of the suite's own code), and the setup of the measurement.

    Raises:
        UserError: as :func:`write_speed`.
    """
    frame = tabulated(entry for path in measurements for entry in benchmarks(path))
    if frame.empty:
        raise UserError("no measurements: run `make bench`")
    return frame


def tabulated(entries: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of :func:`speed_table` from stored measurements of plain loops."""
    return pd.DataFrame([row for entry in entries for row in _rows(entry)])


def _rows(benchmark: dict[str, Any]) -> list[dict[str, Any]]:
    task = "purification" if "purifier" in benchmark else "training"
    method = benchmark["purifier" if "purifier" in benchmark else "method"]
    medians = {library: statistics.median(times) for library, times in benchmark["seconds"].items()}
    if SUITE not in medians:
        raise UserError(
            f"{task} of {method} was measured without the suite's own code: measure again"
        )
    return [
        {
            "task": task,
            "method": method,
            "case": benchmark["case"],
            "library": library,
            "device": benchmark["device"],
            "seconds": seconds,
            "over_suite": seconds / medians[SUITE],
            "n_images": benchmark["n_images"],
            "rounds": len(benchmark["seconds"][library]),
            "torch": benchmark["torch"],
            "processor": benchmark["processor"],
            "git": benchmark["git"],
        }
        for library, seconds in medians.items()
    ]


def markdown(frame: pd.DataFrame) -> str:
    """Format the table as Markdown: one row per method and case, one column per library."""
    libraries = list(dict.fromkeys(frame["library"]))
    libraries.sort(key=lambda library: library != SUITE)
    setup = [f"median of {frame['rounds'].max()} alternated rounds"]
    setup += list(dict.fromkeys(frame["processor"]))
    setup.append(f"torch {', '.join(dict.fromkeys(frame['torch']))}")
    lines = ["# Purification and training: time compared with plain loops", ""]
    lines += [f"{'; '.join(setup)}.", ""]
    lines += ["Each cell: seconds per image (ratio to the suite's).", ""]
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
