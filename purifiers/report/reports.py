"""From a scale to files on disk: documents, claims, a paper's index, the status."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from purifiers.core.artifacts import RunFolder, write_text
from purifiers.core.spec import DatasetSpec
from purifiers.plan.cells import Document, Flag
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.scale import scale_names
from purifiers.report.aggregate import stand_in
from purifiers.report.claims import write_claims
from purifiers.report.layout import data_notes
from purifiers.report.marked import MarkedBlock
from purifiers.report.status import status_markdown
from purifiers.report.traits_table import traits_markdown
from purifiers.report.write import write_document

STATUS = MarkedBlock("benchmarks/README.md", "status")
"""Cells done, runnable and missing."""
TRAITS = MarkedBlock("CONTRIBUTING.md", "traits")
"""What a component may declare."""
SCALE_ORDER = ("smoke", "desk", "paper")


def write_reports(root: Path, scale: str, wanted: Sequence[str]) -> None:
    """Write documents from the runs that are there; whole papers with claims and an index.

    Of a whole paper, documents of which nothing has been run are only listed. An index that is
    there is not replaced by one of nothing.

    Args:
        wanted: ``aid/table_3``, or ``aid`` for everything of a paper; empty: all papers.
    """
    plan = make_plan(root, scale, wanted)
    whole = [n for n in wanted if "/" not in n] if wanted else plan.working_papers()
    notes = _data_notes(plan)
    documents = {name: _flagged(document, notes) for name, document in plan.documents.items()}
    reproduced: dict[str, int] = {}
    for name, document in documents.items():
        if wanted or document.paper in whole:
            folder = root / "results" / "tables" / scale / document.paper
            published_n = plan.papers[document.paper].declared.get("published_n")
            reproduced[name] = write_document(
                document,
                plan.scale.info(),
                plan.runs_root,
                folder,
                plan.failure_of,
                published_n,
                only_if_run=name not in wanted,
            )
    for paper in whole:
        folder = root / "results" / "tables" / scale / paper
        found = sum(n for name, n in reproduced.items() if documents[name].paper == paper)
        if not found and (folder / "README.md").exists():
            continue
        write_claims(
            plan.papers[paper].claims,
            {d.document: d for d in plan.of(paper)},
            plan.scale.info(),
            plan.runs_root,
            folder / "claims.csv",
            plan.failure_of,
        )
        write_text(folder / "README.md", _index(plan, paper, documents, reproduced))


def _data_notes(plan: Plan) -> dict[str, str]:
    """What the record of each data set that has been read says of its images, by its name."""
    notes: dict[str, str] = {}
    for run in plan.runs.values():
        folder = RunFolder(plan.runs_root, run.stage, run.id)
        if run.stage == "dataset" and folder.complete():
            record = folder.record(verify=False)
            notes[record.spec_as(DatasetSpec).dataset.component] = record.summary["note"]
    return notes


def _flagged(document: Document, notes: Mapping[str, str]) -> Document:
    """Flag every cell whose images are not the original ones."""
    cells = []
    for cell in document.cells:
        note = notes.get(cell.used_dataset or "", "")
        flags = (Flag("data", f"{cell.used_dataset}: {note}"),) if note else ()
        cells.append(dataclasses.replace(cell, flags=(*cell.flags, *flags)))
    return dataclasses.replace(document, cells=tuple(cells))


def _index(
    plan: Plan, paper: str, documents: Mapping[str, Document], reproduced: Mapping[str, int]
) -> str:
    scale = plan.scale.info()
    own = {name: document for name, document in documents.items() if document.paper == paper}
    lines = [f"# {plan.papers[paper].declared['title']}", "", f"Scale: {scale.label}.", ""]
    if scale.stand_in_note and any(stand_in(cell) for d in own.values() for cell in d.cells):
        lines += [f"**{scale.stand_in_note}**", ""]
    table = ["| Document | Title | Cells | Planned | Reproduced |", "|:--|:--|--:|--:|--:|"]
    notes: list[str] = []
    for name, document in own.items():
        count = reproduced[name]
        planned = sum(cell.state == "planned" for cell in document.cells)
        label = document.document.replace("_", " ")
        if count or not planned:
            label = f"[{label}]({document.document}.csv)"
            notes += data_notes(document)
        counts = f"{len(document.cells)} | {planned} | {count}"
        table.append(f"| {label} | {document.title} | {counts} |")
    lines += [f"**{note}**\n" for note in dict.fromkeys(notes)]
    return "\n".join([*lines, *table, "", "Claims: [claims.csv](claims.csv)", ""])


def write_status(root: Path, check: bool) -> int:
    """Renew the status in ``benchmarks/README.md`` and the tables of traits in
    ``CONTRIBUTING.md``, or check that both are up to date.

    The status depends on the declarations, the components and the tables in ``results/tables``.

    Args:
        check: write nothing; print a message for each page that is out of date.

    Returns:
        1 if ``check`` and a page is out of date, else 0.

    Raises:
        UserError: a page lacks its two marks.
    """
    found = [name for name in SCALE_ORDER if name in scale_names(root)]
    plans = {name: make_plan(root, name) for name in found}
    documents = {name: list(plan.documents.values()) for name, plan in plans.items()}
    components = {
        paper.id: {
            name: recipe["component"] for name, recipe in paper.declared.get("methods", {}).items()
        }
        for plan in plans.values()
        for paper in plan.papers.values()
    }
    blocks = {
        STATUS: status_markdown(documents, components, root),
        TRAITS: traits_markdown(),
    }
    stale = [block for block, content in blocks.items() if block.renew(root, content, check)]
    return int(check and bool(stale))
