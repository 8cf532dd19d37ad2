"""Merge the provenance of the runs behind a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from purifiers.core.ancestry import records_upstream
from purifiers.core.spec import Upstream

KEYS = ("git", "torch", "device", "processor")


def collect(runs_root: Path, runs: Iterable[Upstream]) -> dict[str, Any]:
    """Merge the provenance of runs and of all their ancestors.

    Returns:
        ``runs`` (number of finished runs per stage), the sorted distinct values of each of
        ``KEYS``, ``uncommitted`` (the components' files that were not in the commit in the form
        that ran), ``finished`` (first and last time, or None) and ``elapsed_seconds`` (sum over the
        distinct runs; a run that several cells share counts once).
    """
    records = records_upstream(runs_root, runs)
    stages: dict[str, int] = {}
    for record in records.values():
        stages[record.stage] = stages.get(record.stage, 0) + 1
    entries = [record.provenance for record in records.values()]
    times = sorted(entry["finished"] for entry in entries if "finished" in entry)
    return {
        "runs": dict(sorted(stages.items())),
        **{key: sorted({str(entry[key]) for entry in entries if key in entry}) for key in KEYS},
        "uncommitted": sorted({file for e in entries for file in e.get("uncommitted", ())}),
        "finished": [times[0], times[-1]] if times else None,
        "elapsed_seconds": round(sum(record.elapsed_seconds for record in records.values()), 3),
    }
