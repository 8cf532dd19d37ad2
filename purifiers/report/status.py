"""What the suite covers, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from purifiers.core import registry
from purifiers.plan.cells import Document


def status_markdown(
    documents: Mapping[str, Sequence[Document]], components: Mapping[str, Mapping[str, str]]
) -> str:
    """Two tables: what of each document runs at each scale, and which methods are there.

    Args:
        documents: per scale (in the order of the columns) the documents of all papers; the same
            documents at every scale.
        components: per paper, from the name of a method's recipe to its component.
    """
    return f"{coverage(documents)}\n{methods(documents, components)}"


def coverage(documents: Mapping[str, Sequence[Document]]) -> str:
    """A row per document: its cells, and per scale runnable / not implemented / quoted ones.

    What is left over is excluded at that scale or a configuration.
    """
    lines = [
        _row(["Paper", "Document", "Title", "Cells", *documents]),
        "|:--|:--|:--|--:|" + "--:|" * len(documents),
    ]
    by_scale = [
        {(document.paper, document.document): document for document in listed}
        for listed in documents.values()
    ]
    for place, document in _merged(by_scale).items():
        told = [_counts(scale[place]) if place in scale else "–" for scale in by_scale]
        name = document.document.replace("_", " ")
        lines.append(_row([document.paper, name, document.title, str(len(document.cells)), *told]))
    lines += ["", "Per scale: cells that run / are not implemented / are quoted by the paper.", ""]
    return "\n".join(lines)


def methods(
    documents: Mapping[str, Sequence[Document]], components: Mapping[str, Mapping[str, str]]
) -> str:
    """A row per method component: whether its file is there, and which documents need it."""
    needed: dict[str, dict[str, dict[str, None]]] = {}
    for document in (document for listed in documents.values() for document in listed):
        for recipe in (recipe for cell in document.cells for recipe in cell.methods):
            by_paper = needed.setdefault(components[document.paper][recipe], {})
            by_paper.setdefault(document.paper, {})[document.document] = None
    lines = [_row(["Method", "Implemented", "Needed by"]), "|:--|:--|:--|"]
    for method, by_paper in sorted(needed.items()):
        told = [f"{paper}: {_gathered(stems)}" for paper, stems in by_paper.items()]
        there = "yes" if registry.exists("method", method) else "no"
        lines.append(_row([method, there, "; ".join(told)]))
    return "\n".join([*lines, ""])


def _gathered(stems: Iterable[str]) -> str:
    """``table_1, table_2, audit, audit_eps`` as ``"table 1, 2, audit, audit eps"``."""
    kinds: dict[str, list[str]] = {}
    for kind, _, number in (stem.partition("_") for stem in stems):
        told = number if kind in kinds and kind != "audit" else f"{kind} {number}".strip()
        kinds.setdefault(kind, []).append(told)
    return ", ".join(told for listed in kinds.values() for told in listed)


def _merged(by_scale: Iterable[dict[tuple[str, str], Document]]) -> dict[tuple[str, str], Document]:
    merged: dict[tuple[str, str], Document] = {}
    for scale in by_scale:
        for place, document in scale.items():
            merged.setdefault(place, document)
    return merged


def _counts(document: Document) -> str:
    if document.status != "measured":
        return document.status
    states = [cell.state for cell in document.cells]
    return " / ".join(str(states.count(s)) for s in ("planned", "not implemented", "quoted"))


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"
