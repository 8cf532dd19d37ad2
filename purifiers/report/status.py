"""Format the status page: cells done, runnable and missing per paper and scale."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from purifiers.core import registry
from purifiers.plan.cells import Document
from purifiers.report.earlier import counted

Documents = Mapping[str, Sequence[Document]]
"""All documents by scale, in the order of the columns. All scales have the same documents in the
same order."""

Components = Mapping[str, Mapping[str, str]]
"""Component of each method recipe, by paper and recipe name."""

Row = Mapping[str, Document]
"""One document, by scale."""

TABLES = "results/tables/{scale}"
"""Folder of the committed tables of a scale."""

WORDS = {
    "outdated": "outdated",
    "not implemented": "missing",
    "not run": "left out",
    "quoted": "quoted",
}
"""State of a cell that does not run, or whose value is an older run's, to its word on the page."""

LEGEND = """\
- **Cells**: numbers to reproduce; configuration and qualitative documents are not counted.
- **n of m done**: of m cells that run at this scale, n have a value in `results/tables/<scale>/`.
- **outdated**: the table has a value that belongs to an older declaration, setting or data set; a
  report of this table by its name removes it.
- **missing**: needs a method, classifier, metric or data file that is not implemented.
- **left out**: implemented, but its data set is not part of this scale.
- **quoted**: copied by the paper from another publication; the suite does not measure it.
"""


def status_markdown(documents: Documents, components: Components, root: Path) -> str:
    """Format the status page: matrix of papers and scales, legend, documents per paper, methods.

    Args:
        documents: all documents by scale.
        components: components of the method recipes, by paper.
        root: the repository, with the committed tables and the papers' READMEs.
    """
    papers = _by_paper(documents)
    sections = [_section(root, paper, rows) for paper, rows in papers.items()]
    methods = _methods(root, documents, components)
    return "\n".join([_matrix(root, papers, list(documents)), LEGEND, *sections, methods])


def _by_paper(documents: Documents) -> dict[str, list[Row]]:
    papers: dict[str, list[Row]] = {}
    for row in zip(*documents.values(), strict=True):
        papers.setdefault(row[0].paper, []).append(dict(zip(documents, row, strict=True)))
    return papers


def _matrix(root: Path, papers: Mapping[str, Sequence[Row]], scales: Sequence[str]) -> str:
    """Format one row per paper and a total; an entry links to the paper's committed index."""
    lines = _header(["Paper", "Cells", *scales])
    for paper, rows in papers.items():
        readme = _target(root, [f"benchmarks/{paper}/README.md"])
        name = _linked(paper_heading(root, paper), readme)
        lines.append(_counted(root, [name], rows, [TABLES + f"/{paper}/README.md"]))
    everything = [row for rows in papers.values() for row in rows]
    return "\n".join([*lines, _counted(root, ["All"], everything), ""])


def _section(root: Path, paper: str, rows: Sequence[Row]) -> str:
    """Format one row per measured document, then one line with the names of all others."""
    scales = list(rows[0])
    lines = [f"## {paper_heading(root, paper)} (`{paper}`)", ""]
    lines += _header(["Document", "Title", "Cells", *scales])
    others: dict[str, list[str]] = {}
    for row in rows:
        document = row[scales[0]]
        if document.status == "measured":
            names = [document.document.replace("_", " "), document.title]
            table = TABLES + f"/{paper}/{document.document}"
            lines.append(_counted(root, names, [row], [f"{table}.md", f"{table}.csv"]))
        else:
            others.setdefault(document.status, []).append(document.document)
    if others:
        listed = (f"{_joined(stems)} ({status})" for status, stems in others.items())
        lines += ["", f"Not measured: {'; '.join(listed)}."]
    return "\n".join([*lines, ""])


def _counted(
    root: Path, names: Sequence[str], rows: Sequence[Row], links: Sequence[str] = ()
) -> str:
    """Format a row: names, number of cells, and an entry per scale.

    Args:
        links: paths below ``root`` with ``{scale}`` in them; the first existing one is linked.
    """
    totals = {
        scale: sum((_count(root, scale, row[scale]) for row in rows), Counter[str]())
        for scale in rows[0]
    }
    entries = [
        _entry(counts, _target(root, [link.format(scale=scale) for link in links]))
        for scale, counts in totals.items()
    ]
    first = [next(iter(row.values())) for row in rows]
    cells = sum(len(document.cells) for document in first if document.status == "measured")
    return _row([*names, f"{cells:,}", *entries])


def _methods(root: Path, documents: Documents, components: Components) -> str:
    """Format the implemented methods with their papers, then the missing ones with documents."""
    implemented, missing = [], []
    for method, by_paper in sorted(_needed(documents, components).items()):
        papers = {paper_heading(root, paper): stems for paper, stems in by_paper.items()}
        if registry.exists("method", method):
            implemented.append(_row([f"`{method}`", "yes", ", ".join(papers)]))
        else:
            needed = "; ".join(f"{paper}: {_joined(stems)}" for paper, stems in papers.items())
            missing.append(_row([f"`{method}`", "no", needed]))
    header = _header(["Method", "Implemented", "Needed by"])
    return "\n".join(["## Methods", "", *header, *implemented, *missing, ""])


def _needed(documents: Documents, components: Components) -> dict[str, dict[str, list[str]]]:
    """List the documents that use a method, by method component and paper."""
    needed: dict[str, dict[str, list[str]]] = {}
    for document in (document for listed in documents.values() for document in listed):
        for recipe in (recipe for cell in document.cells for recipe in cell.methods):
            by_paper = needed.setdefault(components[document.paper][recipe], {})
            stems = by_paper.setdefault(document.paper, [])
            if document.document not in stems:
                stems.append(document.document)
    return needed


def _count(root: Path, scale: str, document: Document) -> Counter[str]:
    """Count the cells of a measured document by state.

    The values of its committed table count as ``done`` or ``outdated``, see
    :func:`purifiers.report.earlier.counted`.
    """
    if document.status != "measured":
        return Counter()
    counts = Counter(cell.state for cell in document.cells)
    table = root / TABLES.format(scale=scale) / document.paper / f"{document.document}.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as lines:
            counts["done"], counts["outdated"] = counted(document, csv.DictReader(lines))
    return counts


def _entry(counts: Counter[str], target: str = "") -> str:
    """Format counts: ``"8 of 20 done, 298 missing, 82 quoted"``, the first linked to ``target``."""
    texts = [f"{counts[state]:,} {word}" for state, word in WORDS.items() if counts[state]]
    if counts["planned"] or counts["done"]:
        texts.insert(0, f"{counts['done']:,} of {counts['planned']:,} done")
    return ", ".join([_linked(text, target) for text in texts[:1]] + texts[1:])


def paper_heading(root: Path, paper: str) -> str:
    """Short name of a paper: its README's title up to a colon, or its id without a README."""
    readme = root / f"benchmarks/{paper}/README.md"
    if not readme.is_file():
        return paper
    title = readme.read_text(encoding="utf-8").partition("\n")[0]
    return title.removeprefix("# ").partition(":")[0]


def _target(root: Path, candidates: Sequence[str]) -> str:
    """First existing candidate, relative to ``benchmarks/``; empty if there is none."""
    existing = (path for path in candidates if (root / path).is_file())
    return next((os.path.relpath(path, "benchmarks").replace(os.sep, "/") for path in existing), "")


def _linked(text: str, target: str) -> str:
    return f"[{text}]({target})" if target else text


def _joined(stems: Iterable[str]) -> str:
    """Join stems: ``table_1, table_2, audit, audit_eps`` to ``"table 1, 2, audit, audit eps"``."""
    kinds: set[str] = set()
    texts: list[str] = []
    for kind, _, number in (stem.partition("_") for stem in stems):
        repeated = kind in kinds and kind != "audit"
        texts.append(number if repeated else f"{kind} {number}".strip())
        kinds.add(kind)
    return ", ".join(texts)


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "|".join("--:" if n == "Cells" else ":--" for n in names) + "|"]


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"
