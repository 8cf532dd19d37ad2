"""Write all files of one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from purifiers.core.artifacts import write_text
from purifiers.core.recorded_csv import provenance_path, write_recorded
from purifiers.plan.cells import Document, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.earlier import with_earlier
from purifiers.report.figures import FROM_ROWS, write_picture
from purifiers.report.images import write_images
from purifiers.report.latex import latex_text
from purifiers.report.merged_provenance import collect, with_earlier_reports
from purifiers.report.ranking import Ranked, ranking
from purifiers.report.ranking_files import write_ranking
from purifiers.report.results import FailureOf, Results
from purifiers.report.selection import Selection, selections, write_selection
from purifiers.report.tables import csv_text, markdown_text


def write_document(
    document: Document,
    scale: ScaleInfo,
    runs_root: Path,
    out_dir: Path,
    failure_of: FailureOf,
    published_n: Mapping[str, int] | None = None,
    *,
    only_if_run: bool = False,
) -> tuple[Document, int]:
    """Write a table, a figure or the audit from its finished runs.

    Files below ``out_dir``, each written atomically:

    - ``<document>.csv`` and ``<document>.provenance.json``;
    - ``.md`` and ``.tex`` for tables and the audit;
    - ``.png`` and ``.svg`` for documents with ``plot`` and a reproduced value;
    - ``ranks.*`` or ``selection.*`` for a document with that ``plot``;
    - ``<document>_images.png`` for documents with ``images`` and stored images.

    Values in an existing, undamaged CSV whose runs are not here are kept, see
    :func:`purifiers.report.earlier.with_earlier`. Pictures that need the runs then stay as they
    are.

    Args:
        document: the document.
        scale: the scale of its runs.
        runs_root: the folder that holds ``score/``.
        out_dir: the folder to write to.
        failure_of: maps the id of a score run to why it failed, or None.
        published_n: see :func:`purifiers.report.aggregate.aggregate`.
        only_if_run: write nothing if cells are planned and none of them has run or failed.

    Returns:
        The document with the flags on the data of kept values, and the number of cells with a
        reproduced value.

    Raises:
        UserError: a result or the CSV with values to keep is damaged, or a worst-of cell has a
            metric other than accuracy.
    """
    results = Results(runs_root, failure_of)
    frame = aggregate(document, scale, results, published_n)
    planned = [cell.state == "planned" for cell in document.cells]
    nothing_here = any(planned) and frame["verdict"][planned].eq("not run").all()
    base = out_dir / document.document
    earlier = base.with_suffix(".csv")
    document, frame, kept = with_earlier(document, frame, earlier, scale, published_n or {})
    reproduced = int(frame["reproduced"].notna().sum())
    if only_if_run and nothing_here:
        return document, reproduced
    if not document.document.startswith("figure_"):
        write_text(base.with_suffix(".md"), markdown_text(document, frame, scale))
        write_text(base.with_suffix(".tex"), latex_text(document, frame, scale))
    if not kept or document.plot in FROM_ROWS:
        derived = _derived(document, frame, results, scale, out_dir)
        write_picture(document, frame, results, scale, out_dir, derived)
    if not kept:
        write_images(document, frame, results, scale, out_dir)
    measured = (
        (cell.stage, run_id) for cell in document.cells for seed in cell.scores for run_id in seed
    )
    provenance: Mapping[str, Any] = collect(runs_root, measured)
    if kept:
        print(f"{base}: {kept} values kept from an earlier report, their runs are not here")
        provenance = with_earlier_reports(provenance, provenance_path(earlier))
    write_recorded(earlier, csv_text(frame), provenance)
    return document, reproduced


def _derived(
    document: Document, frame: pd.DataFrame, results: Results, scale: ScaleInfo, out_dir: Path
) -> Sequence[Ranked] | Sequence[Selection]:
    """What a ranking or a selection computes from all cells; its files are written."""
    if document.plot == "ranking":
        ranked = ranking(document, frame, results)
        write_ranking(ranked, document, frame, scale, out_dir)
        return ranked
    if document.plot == "selection":
        drawn = selections(document, results)
        write_selection(document, drawn, frame, scale, out_dir)
        return drawn
    return ()
