"""Write a ranking as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from purifiers.core.artifacts import write_text
from purifiers.plan.cells import Document, ScaleInfo
from purifiers.report.latex import latex_table
from purifiers.report.layout import WEAK, WEAK_LEGEND, dataset_text, heading, stamp
from purifiers.report.ranking import Ranked, as_frame
from purifiers.report.tables import csv_text, markdown_row

HEADER = (
    *("Rank", "Defence", "Base", "Audit", "Gain", "Protocol's gain", "Clean", "On the classifier"),
    *("Single", "Majority", "Any of 5", "Noise", "ms/image", "Fit (min)"),
)
LEGEND = (
    "Rank and gain with 95 % intervals over images and seeds. Audit: accuracy under the strongest "
    "attack per image. Gain: audit less that of the base alone. Protocol's gain: the same under "
    "attacks on the classifier alone, as most papers report it. Single, majority, any of 5: draws "
    "of random purifiers under PGD on the defence. Noise: Gaussian, severity 3."
)


def write_ranking(
    ranked: Sequence[Ranked],
    document: Document,
    frame: pd.DataFrame,
    scale: ScaleInfo,
    out_dir: Path,
) -> None:
    """Write ``ranks.csv``, ``ranks.md`` and ``ranks.tex``; nothing if nothing is ranked."""
    if not ranked:
        return
    stamped = stamp(document, frame, scale)
    lines = [f"**{stamped}**", "", f"# {heading(document)}", "", LEGEND, ""]
    tex = [f"% {stamped}"]
    for label, entries in sections(ranked).items():
        lines += [f"## {label}", "", markdown_row(HEADER), "|--:|:--|:--" + "|--:" * 11 + "|"]
        lines += [markdown_row(_texts(entry)) for entry in entries]
        lines.append("")
        grid = [HEADER, *(_texts(entry) for entry in entries)]
        tex += latex_table(grid, f"{document.title} ({label}). {stamped} {LEGEND}", "ranks", 3)
    if any(entry.warnings for entry in ranked):
        lines += [WEAK_LEGEND, ""]
        lines += [f"- {e.defence}, {e.base}: {e.warnings}" for e in ranked if e.warnings]
    write_text(out_dir / "ranks.md", "\n".join(lines).rstrip() + "\n")
    write_text(out_dir / "ranks.tex", "\n".join(tex) + "\n")
    write_text(out_dir / "ranks.csv", csv_text(as_frame(ranked).assign(scale=scale.name)))


def sections(ranked: Sequence[Ranked]) -> dict[str, list[Ranked]]:
    """The defences by data set, such as ``mnist (digits in its place)``."""
    by_data: dict[str, list[Ranked]] = {}
    for entry in ranked:
        by_data.setdefault(dataset_text(entry.dataset, entry.stand_in), []).append(entry)
    return by_data


def _texts(entry: Ranked) -> list[str]:
    mark = f" {WEAK}" if entry.warnings else ""
    return [
        f"{entry.rank} [{entry.rank_low}–{entry.rank_high}]",
        entry.defence,
        entry.base,
        f"{entry.audit:.1f} ±{(entry.audit_high - entry.audit_low) / 2:.1f}{mark}",
        f"{entry.gain:+.1f} [{entry.gain_low:+.1f}, {entry.gain_high:+.1f}]",
        f"{entry.protocol_gain:+.1f}",
        *(_number(value, ".1f") for value in (entry.clean, entry.oblivious, entry.single)),
        *(_number(value, ".1f") for value in (entry.majority, entry.any_of_5, entry.corruption)),
        _number(1000 * entry.seconds_per_image, ".3g"),
        _number(entry.train_minutes, ".2g"),
    ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
