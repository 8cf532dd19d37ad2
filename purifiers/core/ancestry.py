"""What finished runs were made from, read from their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from purifiers.core.artifacts import Record, RunFolder
from purifiers.core.spec import AttackSpec, ImagesSpec, PurifySpec, Upstream


def image_history(
    runs_root: Path, images: ImagesSpec
) -> Iterator[tuple[ImagesSpec, Record | None]]:
    """The sets that images went through, last first, each with the record of the run that made it.

    Ends at the clean images, or with None at a run that is not finished.
    """
    while images.run is not None:
        folder = RunFolder(runs_root, images.stage, images.run)
        record = folder.record(verify=False) if folder.complete() else None
        yield images, record
        if record is None:
            return
        assert isinstance(record.spec, AttackSpec | PurifySpec)
        images = record.spec.images


def records_behind(runs_root: Path, runs: Iterable[Upstream]) -> dict[Upstream, Record]:
    """The records of finished runs and of everything upstream of them, by stage and id."""
    records: dict[Upstream, Record] = {}
    pending = list(runs)
    while pending:
        run = pending.pop()
        folder = RunFolder(runs_root, *run)
        if run not in records and folder.complete():
            records[run] = folder.record(verify=False)
            pending.extend(records[run].spec.upstream())
    return records
