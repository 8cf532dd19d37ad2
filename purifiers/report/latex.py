"""Format a document as LaTeX whose tables fit the width of a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd

from purifiers.plan.cells import Document, ScaleInfo
from purifiers.report.layout import (
    LEGEND,
    WEAK_HEADING,
    WEAK_LEGEND,
    blocks,
    stamp,
    verdicts_sentence,
    weak_attack_notes,
)

_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",
        "]": "{]}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "≈": r"$\approx$",
        "≠": r"$\neq$",
        "·": r"$\cdot$",
        "–": "--",
        "†": r"$^\dagger$",
        "→": r"$\rightarrow$",
        "×": r"$\times$",
        "\n": " ",
    }
)
PACKAGES = ("booktabs", "longtable")
"""Packages that the tables need."""

PAGE_POINTS = 345.0
"""Width of the text of LaTeX's article class at 10 pt."""

CHARACTER_POINTS = 4.8
"""Width of a character in footnotesize, rounded up from the average of Computer Modern at 8 pt."""

SEPARATION_POINTS = 8.0
"""Space between two columns, twice ``tabcolsep``."""

LABEL_CHARACTERS = 26
"""Longest line of a row's label."""

LONG = 34
"""Number of lines above which a table may break over pages."""


def latex_text(document: Document, frame: pd.DataFrame, scale: ScaleInfo) -> str:
    """Format a document as LaTeX (needs the packages ``PACKAGES``); the first line is the stamp.

    Each block is a table of its own; one that is wider than a page is turned where that makes it
    narrower, and split by columns where it does not. The first table has the legend. The signs of
    weak attacks follow as a list, which may break over pages.
    """
    stamped = stamp(document, frame, scale)
    lines = [f"% {stamped}".replace("\n", " ")]
    for position, block in enumerate(blocks(document, frame)):
        place = document.where[:1].upper() + document.where[1:]
        label = f" ({block.label})" if block.label else ""
        caption = f"{document.title}{label}. {place}. {stamped}"
        if position == 0 and document.status == "measured":
            caption += f" {LEGEND}{verdicts_sentence(document, frame)}"
        name = f"{document.paper}:{document.document}:{block.id}"
        grid = [["", *block.columns], *([label, *texts] for label, texts in block.rows)]
        lines += latex_table(grid, caption, name)
    if weak_notes := weak_attack_notes(document, frame):
        items = [rf"\item {tex(note)}" for note in weak_notes]
        lines += [rf"\paragraph{{{WEAK_HEADING}.}} {tex(WEAK_LEGEND)}", r"\begin{itemize}"]
        lines += [r"\sloppy", *items, r"\end{itemize}"]
    return "\n".join(lines) + "\n"


def latex_table(grid: Sequence[Sequence[str]], caption: str, name: str, left: int = 1) -> list[str]:
    """Lines of one or more tables that fit the width of a page.

    Args:
        grid: texts, the header first; all rows have the same length.
        caption: without LaTeX's special characters escaped.
        name: label of the first table.
        left: number of leading columns that are aligned left and repeated in every part.
    """
    if _points(grid) > PAGE_POINTS and left == 1:
        turned = [list(column) for column in zip(*grid, strict=True)]
        if _points(turned) <= PAGE_POINTS:
            grid = turned
    parts = list(_parts(grid, left))
    lines: list[str] = []
    for number, part in enumerate(parts):
        whole = len(parts) == 1
        text = caption if number == 0 else f"{caption.partition('. ')[0]}, continued."
        label = rf"\label{{{name}}}" if number == 0 else ""
        text = text if whole or number else f"{text} In {len(parts)} parts."
        lines += _table(part, rf"\caption{{{tex(text)}}}{label}", left)
    return lines


def _parts(grid: Sequence[Sequence[str]], left: int) -> Iterator[list[list[str]]]:
    """Split a grid by columns into parts that fit."""
    begin = left
    while begin < len(grid[0]):
        end = begin + 1
        while end < len(grid[0]) and _points(_columns(grid, left, begin, end + 1)) <= PAGE_POINTS:
            end += 1
        yield _columns(grid, left, begin, end)
        begin = end


def _columns(grid: Sequence[Sequence[str]], left: int, begin: int, end: int) -> list[list[str]]:
    return [[*row[:left], *row[begin:end]] for row in grid]


def _points(grid: Sequence[Sequence[str]]) -> float:
    """Estimated width of a grid."""
    columns = list(zip(*grid, strict=True))
    return sum(_characters(column) * CHARACTER_POINTS + SEPARATION_POINTS for column in columns)


def _characters(column: Sequence[str]) -> int:
    """Longest line of a column, whose header and labels are broken between words."""
    header, *texts = column
    return max(map(len, [*_lines(header, texts), *(line for t in texts for line in _broken(t))]))


def _lines(header: str, texts: Sequence[str]) -> list[str]:
    """Break a header to about the width of the texts below it."""
    longest = max((len(line) for text in texts for line in _broken(text)), default=0)
    width = max(longest, 8, *(len(word) for word in header.split()))
    return textwrap.wrap(header, width, break_long_words=False, break_on_hyphens=False) or [""]


def _broken(text: str) -> list[str]:
    return textwrap.wrap(text, LABEL_CHARACTERS, break_on_hyphens=False) or [""]


def _table(grid: Sequence[Sequence[str]], caption: str, left: int) -> list[str]:
    columns = list(zip(*grid, strict=True))
    heads = [
        _stacked(_lines(header, texts), k < left) for k, (header, *texts) in enumerate(columns)
    ]
    rows = [
        " & ".join(_stacked(_broken(text), k < left) for k, text in enumerate(row)) + r" \\"
        for row in grid[1:]
    ]
    form = "@{}" + "l" * left + "r" * (len(columns) - left) + "@{}"
    head = [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    size = r"\footnotesize\setlength{\tabcolsep}{4pt}"
    if sum(max(len(_broken(text)) for text in row) for row in grid[1:]) > LONG:
        return [
            *("{" + size, rf"\begin{{longtable}}{{{form}}}", caption + r" \\", *head),
            *(r"\endhead", *rows, r"\bottomrule", r"\end{longtable}", "}"),
        ]
    return [
        *(r"\begin{table}", r"\centering" + size, caption),
        *(rf"\begin{{tabular}}{{{form}}}", *head, *rows),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]


def _stacked(lines: Sequence[str], is_left: bool) -> str:
    """Lines of a cell, one above the other."""
    if len(lines) == 1:
        return tex(lines[0])
    return rf"\shortstack[{'l' if is_left else 'r'}]{{" + r"\\".join(map(tex, lines)) + "}"


def tex(text: str) -> str:
    """Escape LaTeX's special characters and write the tables' marks as mathematics."""
    return text.translate(_TEX)
