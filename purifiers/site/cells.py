"""Format single numbers: the text in a table, its verdict's mark, and its details."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from purifiers.report.compare import (
    DIFFERS,
    ELSEWHERE,
    MATCH,
    NO_PUBLISHED,
    NOT_COMPARABLE,
    VERDICTS,
)
from purifiers.report.layout import DOUBTED, MARKS, MISSING
from purifiers.report.results import COUNTED
from purifiers.report.signs import NOT_PROBED
from purifiers.site.results import Row

KEYS = {
    MATCH: "match",
    DIFFERS: "differs",
    NOT_COMPARABLE: "scale",
    ELSEWHERE: "scale",
    NO_PUBLISHED: "new",
    "failed": "failed",
    "not run": "open",
    "not implemented": "missing",
    "quoted": "quoted",
}
"""Verdict to its CSS class, which decides the colour. Two verdicts share one."""

SIGNS = {**MARKS, NO_PUBLISHED: "·", **MISSING, "failed": "✕", "quoted": "q"}
"""Verdict to a mark that shows it without colour."""

MEANINGS = {
    MATCH: "The difference is within the sampling error of both numbers and the seeds' spread.",
    DIFFERS: "The difference is beyond the sampling error of both numbers and the seeds' spread.",
    NOT_COMPARABLE: "Measured with stand-in data or with reduced networks or budgets.",
    ELSEWHERE: "A time, measured on another device than the paper's.",
    NO_PUBLISHED: "The paper gives no number for this cell.",
    "failed": "An attack or training ended in an error; never counted as robustness.",
    "not run": "Not part of this scale, or not run yet.",
    "not implemented": "A named component is missing.",
    "quoted": "The paper copied the number from another publication; not measured here.",
}

DETAILS = (
    *("Published", "Reproduced", "Difference", "Verdict", "95 % interval", "n", "Seeds"),
    *("Data", "Classifier", "Training", "Method", "Attack", "Threat model", "Strongest attack"),
    *("Signs of a weak attack", "Notes"),
)
"""Labels of a cell's details, in the order of :func:`details`."""


@dataclass(frozen=True)
class Shown:
    """A cell as its table shows it.

    Attributes:
        published: the paper's value, ``·`` if it has none; empty in a table without any.
        mark: the verdict's mark.
        reproduced: the reproduced value, empty if there is none.
        spread: half the width of the interval, such as ``±1.7``.
        weak: whether the cell has a sign of a weak attack.
        key: CSS class of the verdict.
        order: value that the column is sorted by.
    """

    published: str
    mark: str
    reproduced: str
    spread: str
    weak: bool
    key: str
    order: str


def shown(row: Row, bare: bool) -> Shown:
    """Format a cell.

    Args:
        bare: leave the published value out; for tables without any.
    """
    reproduced, spread = row["reproduced"], ""
    if reproduced and row["metric"] in COUNTED:
        if row["ci_low"] and row["ci_high"]:
            spread = f"±{(float(row['ci_high']) - float(row['ci_low'])) / 2:.1f}"
        reproduced = f"{float(reproduced):.1f}"
    elif reproduced:
        reproduced = f"{float(reproduced):.3g}"
    words = [flag for flag in row["flags"].split("; ") if flag.startswith("published: ")]
    if words:  # a configuration: the paper's words, nothing to reproduce
        text = words[0].removeprefix("published: ")
        return Shown(text, "", "", "", False, "words", "-1")
    published = f"{float(row['published']):g}" if row["published"] else "·"
    return Shown(
        published="" if bare else published + (DOUBTED if "doubtful: " in row["flags"] else ""),
        mark="" if bare and reproduced else SIGNS[row["verdict"]],
        reproduced=reproduced,
        spread=spread,
        weak=row["warnings"] not in ("", NOT_PROBED),
        key=KEYS[row["verdict"]],
        order=row["reproduced"] or "-1",
    )


def details(row: Row) -> list[str]:
    """The values of ``DETAILS``; numbers are those of the CSV, empty where it has none."""
    unit = {"percent": " %"}.get(row["unit"], f" {row['unit']}")
    interval = f"{row['ci_low']} to {row['ci_high']}{unit}" if row["ci_low"] else ""
    counted = f"{row['n_correct']} of {row['n']} correct" if row["n_correct"] else row["n"]
    images = f" ({row['images']} images)" if row["images"] else ""
    spread = f" ({row['seed_low']} to {row['seed_high']})" if row["seed_low"] else ""
    stand_in = f"{row['stand_in']} in place of {row['dataset']}"
    return [
        f"{row['published']}{unit}" if row["published"] else "",
        f"{row['reproduced']}{unit}" if row["reproduced"] else "",
        row["deviation"],
        f"{SIGNS[row['verdict']]} {row['verdict']}",
        interval,
        f"{counted}{images}".strip(),
        f"{row['seeds']}{spread}",
        stand_in if row["stand_in"] else row["dataset"],
        row["classifier"],
        row["training"],
        row["method"],
        row["attack"],
        ", ".join(filter(None, (row["threat_model"], row["gradient"]))),
        row["worst_attack"],
        row["warnings"],
        row["flags"],
    ]


def counts(rows: list[Row]) -> list[tuple[str, str, str, int]]:
    """Verdict, mark, CSS class and number of cells, of the verdicts that occur."""
    number_of = Counter(row["verdict"] for row in rows)
    return [(v, SIGNS[v], KEYS[v], number_of[v]) for v in VERDICTS if v in number_of]
