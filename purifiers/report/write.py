"""Everything that is written for one document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from purifiers.core.artifacts import write_json, write_text
from purifiers.plan.cells import Document, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.figures import write_picture
from purifiers.report.images import write_images
from purifiers.report.merged_provenance import collect
from purifiers.report.results import FailureOf, Results
from purifiers.report.tables import csv_text, latex_text, markdown_text


def write_document(
    document: Document,
    scale: ScaleInfo,
    runs_root: Path,
    out_dir: Path,
    failure_of: FailureOf,
    published_n: Mapping[str, int] | None = None,
    *,
    only_if_run: bool = False,
) -> int:
    """Write a table, a figure or the audit from the runs that are there.

    Below ``out_dir``: ``<document>.csv`` and ``<document>.provenance.json`` always; ``.md`` and
    ``.tex`` for tables and the audit; ``.png`` and ``.svg`` for what is drawn when a value is
    reproduced; ``<document>_images.png`` where images are asked for and there. Each file appears
    whole or not at all.

    Args:
        runs_root: the folder that holds ``score/``.
        failure_of: from the id of a score run to why it failed, or None.
        published_n: see :func:`purifiers.report.aggregate.aggregate`.
        only_if_run: leave the folder as it is while every cell that can be run is still to be run.

    Returns:
        How many cells have a reproduced value.
    """
    results = Results(runs_root, failure_of)
    frame = aggregate(document, scale, results, published_n)
    reproduced = int(frame["reproduced"].notna().sum())
    planned = [cell.state == "planned" for cell in document.cells]
    if only_if_run and any(planned) and frame["verdict"][planned].eq("not run").all():
        return reproduced
    base = out_dir / document.document
    if not document.document.startswith("figure_"):
        write_text(base.with_suffix(".md"), markdown_text(document, frame, scale))
        write_text(base.with_suffix(".tex"), latex_text(document, frame, scale))
    write_picture(document, frame, scale, out_dir)
    write_images(document, frame, results, scale, out_dir)
    measured = (
        (cell.stage, run_id) for cell in document.cells for seed in cell.scores for run_id in seed
    )
    write_json(base.with_suffix(".provenance.json"), collect(runs_root, measured))
    write_text(base.with_suffix(".csv"), csv_text(frame))
    return reproduced
