"""Format a document as CSV and Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from purifiers.plan.cells import Document, ScaleInfo
from purifiers.report.layout import (
    LEGEND,
    WEAK_HEADING,
    WEAK_LEGEND,
    blocks,
    heading,
    remarks,
    same_runs,
    stamp,
    verdicts_sentence,
    weak_attack_notes,
)
from purifiers.report.results import FLAGS

_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`<[]"} | {"\n": " "})


def csv_text(frame: pd.DataFrame) -> str:
    """Format the tidy rows as CSV.

    Numbers have four decimals, those below 1 four significant digits; missing values are empty.
    """
    short = frame.drop(columns=[FLAGS, "suspicious"], errors="ignore")
    for name in frame.select_dtypes("float"):
        short[name] = [round(v, 4) if abs(v) >= 1 else float(f"{v:.4g}") for v in frame[name]]
    return short.to_csv(index=False, lineterminator="\n")


def markdown_text(document: Document, frame: pd.DataFrame, scale: ScaleInfo) -> str:
    """Format a document as GitHub-flavoured Markdown; the first line is the stamp."""
    lines = [f"**{_md(stamp(document, frame, scale))}**", "", f"# {_md(heading(document))}", ""]
    lines += [f"{_md(document.where)}.{verdicts_sentence(document, frame)}", ""]
    for block in blocks(document, frame):
        if block.label:
            lines += [f"## {_md(block.label)}", ""]
        lines += [markdown_row(["", *block.columns]), "|:--" + "|--:" * len(block.columns) + "|"]
        lines += [markdown_row([label, *texts]) for label, texts in block.rows]
        lines.append("")
    notes = list(document.notes)
    if document.status == "measured":
        lines += [_md(LEGEND), ""]
        notes += remarks(document, frame)
        notes += same_runs(document) if scale.reduced else []
    if scale.stand_in_note and (frame["stand_in"] != "").any():
        notes.insert(0, scale.stand_in_note)
    lines += [f"- {_md(remark)}" for remark in notes]
    if weak_notes := weak_attack_notes(document, frame):
        lines += [""] if lines[-1] else []
        lines += [f"## {WEAK_HEADING}", "", _md(WEAK_LEGEND), ""]
        lines += [f"- {_md(note)}" for note in weak_notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _md(text: str) -> str:
    return text.translate(_MARKDOWN)


def markdown_row(texts: Sequence[str]) -> str:
    """A row of a Markdown table, with special characters escaped."""
    return "| " + " | ".join(_md(text) for text in texts) + " |"
