"""The plan of a scale: documents, runs and jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import RunFolder, read_json, short_hash, write_json
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.files import remembered
from purifiers.core.recorded_csv import is_intact
from purifiers.core.spec import SPECS
from purifiers.plan.batches import Batch, gather, write_specs
from purifiers.plan.cells import Document
from purifiers.plan.declarations import Paper, blocks_of, load_paper, paper_names
from purifiers.plan.expand import Expander
from purifiers.plan.graph import Run
from purifiers.plan.scale import Scale, load_scale
from purifiers.plan.throughput import Throughput


@dataclass(frozen=True)
class Plan:
    """Documents at one scale with their runs and jobs.

    Attributes:
        root: the repository.
        papers: declarations by paper.
        documents: expanded documents by name, such as ``aid/table_3``.
        runs: runs of the documents and all their ancestors, by id.
        batches: the job of each run, by run id.
    """

    root: Path
    scale: Scale
    papers: dict[str, Paper]
    documents: dict[str, Document]
    runs: dict[str, Run]
    batches: dict[str, Batch]

    def __repr__(self) -> str:
        return f"Plan({self.scale.name}: {len(self.documents)} documents, {len(self.runs)} runs)"

    @property
    def runs_root(self) -> Path:
        """Folder of the runs."""
        return self.root / "results" / "runs"

    def working_papers(self) -> list[str]:
        """Papers with at least one cell that runs at this scale."""
        return sorted({d.paper for d in self.documents.values() for c in d.cells if c.scores})

    def of(self, name: str) -> list[Document]:
        """List the document ``aid/table_3``, or all documents of the paper ``aid``."""
        if name in self.documents:
            return [self.documents[name]]
        return [document for document in self.documents.values() if document.paper == name]

    def score_runs(self, name: str) -> list[Run]:
        """List the score runs of the cells of a document or paper."""
        ids = {s for d in self.of(name) for c in d.cells for group in c.scores for s in group}
        return [self.runs[i] for i in sorted(ids)]

    def manifests(self, name: str) -> list[str]:
        """List the manifests of the jobs that a document or paper needs, relative to the root."""
        names = {self.batches[run.id].manifest_name for run in self.score_runs(name)}
        return [f"results/runs/batches/{manifest}" for manifest in sorted(names)]

    def write_specs(self) -> None:
        """Write the spec files of all jobs and reports."""
        unique = {batch.id: batch for batch in self.batches.values()}
        write_specs(unique.values(), self.runs_root, self.scale)
        papers = [n for n, paper in self.papers.items() if len(self.of(n)) == len(paper.documents)]
        for name in (*self.documents, *papers):
            self._write_report_spec(name)

    def report_spec(self, name: str) -> str:
        """Spec file of the report of a document or paper, relative to the root."""
        return f"results/runs/batches/report/{self.scale.name}/{name}.spec.json"

    def _write_report_spec(self, name: str) -> None:
        """Rewrite the spec after new declarations, or while manifests or intact tables are missing.

        Snakemake treats an existing table as finished, even one written early, after an error or
        damaged since, unless an input is newer and has other content.
        """
        path = self.root / self.report_spec(name)
        spec = {"made_from": self.manifests(name), "declared": self._declared(name)}
        tables = self.root / "results" / "tables" / self.scale.name
        manifests = [self.root / manifest for manifest in spec["made_from"]]
        csvs = [
            tables / document.paper / f"{document.document}.csv"
            for document in self.of(name)
            if any(cell.scores for cell in document.cells)
        ]
        if "/" not in name:
            csvs.append(tables / name / "claims.csv")
        stored = read_json(path) if path.exists() else {}
        finished = all(path.exists() for path in manifests) and all(map(is_intact, csvs))
        if {**stored, **spec} != stored or not finished:
            write_json(path, {**spec, "asked_ns": time.time_ns()})

    def _declared(self, name: str) -> str:
        """Hash of everything that a report prints beside the results of its runs."""
        paper = self.papers[name.partition("/")[0]]
        content: list[Any] = [self.of(name), self.scale.info(), paper.declared.get("published_n")]
        if "/" not in name:
            content += [paper.declared["title"], paper.claims]
        return short_hash(repr(content))

    def failure_of(self, score: str) -> str | None:
        """The first failure among a score run and its ancestors; None if none has failed."""
        run = self.runs[score]
        for upstream in (run, *run.ancestors()):
            folder = RunFolder(self.runs_root, upstream.stage, upstream.id)
            if not folder.complete() and (failure := folder.failure()):
                return f"{upstream.stage} {upstream.id}: {failure}"
        return None


def make_plan(root: Path, scale_name: str, names: Sequence[str] = ()) -> Plan:
    """Read the declarations of some documents and expand them at one scale.

    Args:
        root: the repository.
        scale_name: file stem of the scale in ``workflow/scales``.
        names: documents such as ``aid/table_3`` or whole papers such as ``aid``; empty: all.

    Raises:
        UserError: an unknown scale, paper or document, or an invalid declaration.
    """
    scale = load_scale(root, scale_name)
    all_papers = paper_names(root)
    stems_of: dict[str, set[str] | None] = {}  # None: all documents of the paper
    for name in names:
        paper, _, stem = name.partition("/")
        if paper not in all_papers:
            raise UserError(f"there is no paper {paper!r}{did_you_mean(paper, all_papers)}")
        listed = stems_of.setdefault(paper, set())
        if not stem:
            stems_of[paper] = None
        elif listed is not None:
            listed.add(stem)
    papers = {name: load_paper(root, name) for name in all_papers if not names or name in stems_of}
    for declared in papers.values():
        _check_entries(scale, declared)
    expander = Expander(scale)
    documents: dict[str, Document] = {}
    with remembered(root / "results" / "runs"):
        for name, declared in papers.items():
            stems = stems_of.get(name)
            for stem in stems or ():
                if stem not in declared.documents:
                    table = f"table_{stem}"  # as in make's T=aid/3
                    meant = table if table in declared.documents else stem
                    hint = did_you_mean(meant, declared.documents)
                    raise UserError(f"paper {name!r} declares no {stem!r}{hint}")
            for stem in declared.documents:
                if stems is None or stem in stems:
                    documents[f"{name}/{stem}"] = expander.document(declared, stem)
    runs = expander.graph.runs
    first = documents.get(scale.first)
    # a repository may hold some of the papers only
    if not first and not names and scale.first.partition("/")[0] in papers:
        raise UserError(
            f"workflow/scales/{scale.name}.yaml: first: there is no document {scale.first!r}"
            f"{did_you_mean(scale.first, documents)}"
        )
    first_scores = (
        [runs[i] for c in first.cells for seed in c.scores for i in seed] if first else []
    )
    batches = gather(runs.values(), scale, _durations(root, scale), first_scores)
    return Plan(root, scale, papers, documents, runs, batches)


def _check_entries(scale: Scale, paper: Paper) -> None:
    """Check that a scale's entries of a paper name its documents and rows.

    Raises:
        UserError: an unknown document or row.
    """
    rows = [row["id"] for d in paper.documents.values() for b in blocks_of(d) for row in b["rows"]]
    for key, names in (("documents", list(paper.documents)), ("rows", rows)):
        for name in scale.declared.get("papers", {}).get(paper.id, {}).get(key, {}):
            if name not in names:
                raise UserError(
                    f"workflow/scales/{scale.name}.yaml: papers.{paper.id}.{key}: {paper.id} has "
                    f"no {name!r}{did_you_mean(name, names)}"
                )


def _durations(root: Path, scale: Scale) -> Callable[[Run], float] | None:
    """Predicted seconds of a run, if the scale declares minutes per job."""
    if not any(isinstance(scale.jobs(stage), dict) for stage in SPECS):
        return None
    throughput = Throughput.load(root)
    device = throughput.default_device(scale.setting("device", "auto"))
    return lambda run: throughput.seconds(run, device)


def requested_documents(
    arguments: Sequence[str], scale: str, tables: str = ""
) -> dict[str, tuple[str, ...]]:
    """List the documents that command-line targets request, by scale.

    ``results/tables/desk/aid/table_3.csv`` requests ``aid/table_3`` at scale ``desk``; the
    ``README`` and ``claims`` files of that folder request the whole paper.

    Args:
        arguments: the command line.
        scale: the scale of ``tables``.
        tables: documents separated by commas or spaces.

    Returns:
        Names by scale; empty without such targets, which requests everything.
    """
    by_scale: dict[str, list[str]] = {}
    for argument in arguments:
        parts = Path(argument).parts
        if len(parts) == 5 and parts[:2] == ("results", "tables"):
            stem = Path(parts[4]).stem
            name = f"{parts[3]}/{stem}" if stem not in ("README", "claims") else parts[3]
            by_scale.setdefault(parts[2], []).append(name)
    for name in tables.replace(",", " ").split():
        by_scale.setdefault(scale, []).append(name)
    return {key: tuple(names) for key, names in by_scale.items()}
