"""Upstream runs of finished runs, read from their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from purifiers.core.artifacts import Record, RunFolder
from purifiers.core.spec import AttackSpec, ImagesSpec, PurifySpec, Upstream


def image_history(
    runs_root: Path, images: ImagesSpec
) -> Iterator[tuple[ImagesSpec, Record | None]]:
    """Yield the image sets behind ``images``, latest first, each with the record of its run.

    Clean images are not yielded. A run that is not finished ends the iteration with a record of
    None.
    """
    while images.run is not None:
        folder = RunFolder(runs_root, images.stage, images.run)
        record = folder.record(verify=False) if folder.complete() else None
        yield images, record
        if record is None:
            return
        assert isinstance(record.spec, AttackSpec | PurifySpec)
        images = record.spec.images


def records_upstream(runs_root: Path, runs: Iterable[Upstream]) -> dict[Upstream, Record]:
    """Records of ``runs`` and of all their upstream runs, by (stage, id).

    Runs that are not finished are left out.
    """
    records: dict[Upstream, Record] = {}
    pending = list(runs)
    while pending:
        run = pending.pop()
        folder = RunFolder(runs_root, *run)
        if run not in records and folder.complete():
            records[run] = folder.record(verify=False)
            pending.extend(records[run].spec.upstream())
    return records
