"""Write the reports of a scale: documents, claims, each paper's index and the status page."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from purifiers.core.artifacts import Record, RunFolder, write_text
from purifiers.core.spec import DatasetSpec
from purifiers.plan.cells import Cell, Document, Flag
from purifiers.plan.graph import Run, with_ancestors
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


def write_reports(root: Path, scale: str, names: Sequence[str]) -> None:
    """Write documents from the finished runs; for whole papers also the claims and an index.

    The index of a whole paper lists documents without any finished run, but their files are not
    written. An existing index is not replaced by one without any reproduced value.

    Args:
        root: the repository.
        scale: name of the scale.
        names: documents such as ``aid/table_3`` or whole papers such as ``aid``; empty: all papers.

    Raises:
        UserError: an unknown name, an invalid declaration, or a damaged result.
    """
    plan = make_plan(root, scale, names)
    papers = [name for name in names if "/" not in name] if names else plan.working_papers()
    notes = _data_notes(plan)
    trained = _training_notes(plan)
    documents: dict[str, Document] = {}
    reproduced: dict[str, int] = {}
    for name, document in plan.documents.items():
        if names or document.paper in papers:
            folder = root / "results" / "tables" / scale / document.paper
            published_n = plan.papers[document.paper].declared.get("published_n")
            documents[name], reproduced[name] = write_document(
                _flagged(document, notes, plan, trained),
                plan.scale.info(),
                plan.runs_root,
                folder,
                plan.failure_of,
                published_n,
                only_if_run=name not in names,
            )
    for paper in papers:
        folder = root / "results" / "tables" / scale / paper
        count = sum(n for name, n in reproduced.items() if documents[name].paper == paper)
        if not count and (folder / "README.md").exists():
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
        _collect(folder, root / "results" / "report" / scale / paper)


def _collect(folder: Path, copies: Path) -> None:
    """Copy a paper's tables and pictures to a folder of their own, for Snakemake's report."""
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(parents=True)
    for path in sorted(folder.glob("*.csv")) + sorted(folder.glob("*.png")):
        shutil.copyfile(path, copies / path.name)


def _data_notes(plan: Plan) -> dict[str, str]:
    """Notes on the images in the records of the prepared data sets, by data set."""
    return {
        record.spec_as(DatasetSpec).dataset.component: record.summary["note"]
        for _, record in _finished(plan, "dataset")
    }


def _training_notes(plan: Plan) -> dict[str, str]:
    """Notes in the records of the trained classifiers, by run."""
    return {
        name: f"{name}: {note}"
        for name, record in _finished(plan, "classifier")
        if (note := record.summary.get("note"))
    }


def _finished(plan: Plan, stage: str) -> Iterator[tuple[str, Record]]:
    """Id and record of each finished run of a stage."""
    for run in plan.runs.values():
        folder = RunFolder(plan.runs_root, run.stage, run.id)
        if run.stage == stage and folder.complete():
            yield run.id, folder.record(verify=False)


def _flagged(
    document: Document, notes: Mapping[str, str], plan: Plan, trained: Mapping[str, str]
) -> Document:
    """Add flags to cells whose images differ from the original ones, or whose trainings failed."""
    cells = []
    for cell in document.cells:
        note = notes.get(cell.used_dataset or "", "")
        flags = [Flag("data", f"{cell.used_dataset}: {note}")] if note else []
        behind = {run.id for run in with_ancestors(_scores(cell, plan))} if trained else set()
        flags += [Flag("data", text) for name, text in trained.items() if name in behind]
        cells.append(dataclasses.replace(cell, flags=(*cell.flags, *flags)))
    return dataclasses.replace(document, cells=tuple(cells))


def _scores(cell: Cell, plan: Plan) -> list[Run]:
    return [plan.runs[name] for seed in cell.scores for name in seed if name in plan.runs]


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
        root: the repository.
        check: write nothing; print a message for each page that is out of date.

    Returns:
        1 if ``check`` and a page is out of date, else 0.

    Raises:
        UserError: a page lacks its two marks.
    """
    scales = [name for name in SCALE_ORDER if name in scale_names(root)]
    plans = {name: make_plan(root, name) for name in scales}
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
