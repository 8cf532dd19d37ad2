"""Where a table's numbers come from: the runs behind it, merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import read_json

KEYS = ("git", "torch", "device", "processor")


def collect(runs_root: Path, score_ids: Iterable[str]) -> dict[str, Any]:
    """Merge the provenance of score runs and of everything upstream of them.

    A run's upstream runs are those whose ids occur in its spec.

    Returns:
        ``runs`` (finished runs per stage), the sorted distinct values of each of ``KEYS``,
        ``finished`` (first and last time, or None) and ``elapsed_seconds`` (sum over the distinct
        runs, however many cells share them).
    """
    paths = {path.parent.name: path for path in sorted(runs_root.glob("*/*/run.json"))}
    records: dict[str, dict[str, Any]] = {}
    waiting = list(score_ids)
    while waiting:
        run_id = waiting.pop()
        if run_id in paths and run_id not in records:
            records[run_id] = read_json(paths[run_id])
            waiting += _texts(records[run_id]["spec"])
    stages: dict[str, int] = {}
    for record in records.values():
        stages[record["stage"]] = stages.get(record["stage"], 0) + 1
    told = [record["provenance"] for record in records.values()]
    times = sorted(entry["finished"] for entry in told if "finished" in entry)
    return {
        "runs": dict(sorted(stages.items())),
        **{key: sorted({str(entry[key]) for entry in told if key in entry}) for key in KEYS},
        "finished": [times[0], times[-1]] if times else None,
        "elapsed_seconds": round(sum(record["elapsed_seconds"] for record in records.values()), 3),
    }


def _texts(value: Any) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
