"""The plan of a scale: documents, runs, jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import RunFolder, read_json, short_hash, write_json
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.batches import Batch, gather, write_specs
from purifiers.plan.cells import Document
from purifiers.plan.declarations import Paper, load_paper, paper_names
from purifiers.plan.expand import Expander
from purifiers.plan.graph import Run
from purifiers.plan.scale import Scale, load_scale


@dataclass(frozen=True)
class Plan:
    """Everything to do for some documents at one scale.

    Attributes:
        papers: declarations by paper.
        documents: ``aid/table_3`` -> its cells.
        runs: all runs behind them by id, inputs included.
        batches: run id -> the job that does it.
    """

    root: Path
    scale: Scale
    papers: dict[str, Paper]
    documents: dict[str, Document]
    runs: dict[str, Run]
    batches: dict[str, Batch]

    @property
    def runs_root(self) -> Path:
        """Where runs lie."""
        return self.root / "results" / "runs"

    def working_papers(self) -> list[str]:
        """Papers of which at least one cell runs at this scale."""
        return sorted({d.paper for d in self.documents.values() for c in d.cells if c.scores})

    def of(self, name: str) -> list[Document]:
        """The document ``aid/table_3``, or all documents of the paper ``aid``."""
        if name in self.documents:
            return [self.documents[name]]
        return [document for document in self.documents.values() if document.paper == name]

    def score_runs(self, name: str) -> list[Run]:
        """The score runs that the cells of a document, or of all of a paper, need."""
        ids = {s for d in self.of(name) for c in d.cells for group in c.scores for s in group}
        return [self.runs[i] for i in sorted(ids)]

    def manifests(self, name: str) -> list[str]:
        """Manifests of the jobs a document or paper waits for, relative to the root."""
        names = {self.batches[run.id].manifest_name for run in self.score_runs(name)}
        return [f"results/runs/batches/{manifest}" for manifest in sorted(names)]

    def write_specs(self) -> None:
        """Write what the jobs read."""
        unique = {batch.id: batch for batch in self.batches.values()}
        write_specs(unique.values(), self.runs_root, self.scale)
        whole = [n for n, paper in self.papers.items() if len(self.of(n)) == len(paper.documents)]
        for name in (*self.documents, *whole):
            self._write_report_spec(name)

    def report_spec(self, name: str) -> str:
        """File that says what a document or paper is made from, relative to the root."""
        return f"results/runs/batches/report/{self.scale.name}/{name}.spec.json"

    def _write_report_spec(self, name: str) -> None:
        """Renew the spec when the declarations have changed, and while jobs or tables are missing:
        Snakemake takes a table that is there, written early or after an error, for finished, unless
        an input is newer and has other content."""
        path = self.root / self.report_spec(name)
        spec = {"made_from": self.manifests(name), "declared": self._declared(name)}
        tables = self.root / "results" / "tables" / self.scale.name
        needed = [self.root / manifest for manifest in spec["made_from"]]
        needed += [
            tables / document.paper / f"{document.document}.csv"
            for document in self.of(name)
            if any(cell.scores for cell in document.cells)
        ]
        known = read_json(path) if path.exists() else {}
        if {**known, **spec} != known or not all(file.exists() for file in needed):
            write_json(path, {**spec, "asked_ns": time.time_ns()})

    def _declared(self, name: str) -> str:
        """Identifies all that a document or a paper says beside its runs."""
        paper = self.papers[name.partition("/")[0]]
        said: list[Any] = [self.of(name), self.scale.info(), paper.declared.get("published_n")]
        if "/" not in name:
            said += [paper.declared["title"], paper.claims]
        return short_hash(repr(said))

    def failure_of(self, score: str) -> str | None:
        """Why a score cannot be had: the first failure among the runs behind it."""
        run = self.runs[score]
        for behind in (run, *run.ancestors()):
            folder = RunFolder(self.runs_root, behind.stage, behind.id)
            if not folder.complete() and (failure := folder.failure()):
                return f"{behind.stage} {behind.id}: {failure}"
        return None


def make_plan(root: Path, scale_name: str, wanted: Sequence[str] = ()) -> Plan:
    """Read the declarations and expand them.

    Args:
        root: the repository.
        wanted: documents such as ``aid/table_3`` or whole papers such as ``aid``; empty: all.

    Raises:
        UserError: an unknown scale, paper or document, or a wrong declaration.
    """
    scale = load_scale(root, scale_name)
    known = paper_names(root)
    chosen: dict[str, set[str] | None] = {}
    for name in wanted:
        paper, _, document = name.partition("/")
        if paper not in known:
            raise UserError(f"there is no paper {paper!r}{did_you_mean(paper, known)}")
        listed = chosen.setdefault(paper, set())
        if not document:
            chosen[paper] = None
        elif listed is not None:
            listed.add(document)
    papers = {name: load_paper(root, name) for name in known if not wanted or name in chosen}
    expander = Expander(scale)
    documents: dict[str, Document] = {}
    for name, declared in papers.items():
        stems = chosen.get(name)
        for stem in stems or ():
            if stem not in declared.documents:
                hint = did_you_mean(stem, declared.documents)
                raise UserError(f"paper {name!r} declares no {stem!r}{hint}")
        for stem in declared.documents:
            if stems is None or stem in stems:
                documents[f"{name}/{stem}"] = expander.document(declared, stem)
    runs = expander.graph.runs
    return Plan(root, scale, papers, documents, runs, gather(runs.values(), scale))


def wanted_documents(
    arguments: Sequence[str], scale: str, tables: str = ""
) -> dict[str, tuple[str, ...]]:
    """Which documents command-line targets ask for, per scale.

    ``results/tables/desk/aid/table_3.csv`` asks for ``aid/table_3`` at scale ``desk``; other files
    of that folder ask for the whole paper. No such target: everything.

    Args:
        tables: documents separated by commas or spaces, for ``scale``.
    """
    found: dict[str, list[str]] = {}
    for argument in arguments:
        parts = Path(argument).parts
        if len(parts) == 5 and parts[:2] == ("results", "tables"):
            stem = Path(parts[4]).stem
            name = f"{parts[3]}/{stem}" if stem not in ("README", "claims") else parts[3]
            found.setdefault(parts[2], []).append(name)
    for name in tables.replace(",", " ").split():
        found.setdefault(scale, []).append(name)
    return {key: tuple(names) for key, names in found.items()}
