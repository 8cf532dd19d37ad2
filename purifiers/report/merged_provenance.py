"""Merge the provenance of the runs behind a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purifiers.core.ancestry import records_upstream
from purifiers.core.artifacts import Record, read_json
from purifiers.core.recorded_csv import DIGEST
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
    return _merged([_part(record) for record in records_upstream(runs_root, runs).values()])


def _part(record: Record) -> dict[str, Any]:
    """Provenance of one run."""
    entry = record.provenance
    return {
        "runs": {record.stage: 1},
        **{key: [str(entry[key])] for key in KEYS if key in entry},
        "uncommitted": entry.get("uncommitted", ()),
        "finished": [entry["finished"]] if "finished" in entry else None,
        "elapsed_seconds": record.elapsed_seconds,
    }


def with_earlier_reports(now: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Merge a report's provenance with that of the earlier ones whose values it keeps.

    An earlier report of the same runs, recognised by the time of the first, is replaced.

    Args:
        now: provenance of the runs that are here.
        path: the file of the earlier provenance.

    Returns:
        Provenance as from :func:`collect`; of several reports with each under ``reports``, oldest
        first.
    """
    before = read_json(path) if path.exists() else now
    before = {key: value for key, value in before.items() if key != DIGEST}
    parts = [part for part in before.get("reports", [before]) if _first(part) != _first(now)]
    parts += [now] if now["runs"] else []
    return {**_merged(parts), "reports": parts} if len(parts) > 1 else next(iter(parts), now)


def _first(report: Mapping[str, Any]) -> str | None:
    times = report["finished"]
    return times[0] if times else None


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stages = sorted({stage for part in parts for stage in part["runs"]})
    times = sorted(time for part in parts for time in part["finished"] or ())
    return {
        "runs": {stage: sum(part["runs"].get(stage, 0) for part in parts) for stage in stages},
        **{
            key: sorted({entry for part in parts for entry in part.get(key, ())})
            for key in (*KEYS, "uncommitted")
        },
        "finished": [times[0], times[-1]] if times else None,
        "elapsed_seconds": round(sum(part["elapsed_seconds"] for part in parts), 3),
    }
