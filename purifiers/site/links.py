"""Point the links of the repository's Markdown pages to the site's pages."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container
from pathlib import PurePosixPath

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
PAGES = {
    "README.md": "/index.md",
    "benchmarks/README.md": "/tables.md",
    "benchmarks/FIDELITY.md": "/fidelity.md",
    "benchmarks/timing/README.md": "/speed.md",
}
"""File of the repository to the page of the site."""


def rewrite(text: str, folder: str, pages: Container[str]) -> str:
    """Replace relative links by links to the site's pages.

    A link to a file that has no page becomes its text.

    Args:
        text: Markdown.
        folder: folder of the file in the repository, such as ``benchmarks/aid``.
        pages: existing pages, such as ``/aid/table_3.md``.
    """

    def replaced(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        page = page_of(path)
        return f"[{label}]({page})" if page in pages and not image else label

    parts = _FENCE.split(text)
    return "".join(p if p.startswith("```") else _LINK.sub(replaced, p) for p in parts)


def page_of(path: str) -> str:
    """The site's page for a file of the repository; empty if there is none."""
    if path in PAGES:
        return PAGES[path]
    parts = PurePosixPath(path).parts
    if len(parts) == 3 and parts[0] == "benchmarks" and parts[2] == "README.md":
        return f"/{parts[1]}/differences.md"
    if len(parts) == 5 and parts[:2] == ("results", "tables"):
        stem = "index" if parts[4] == "README.md" else PurePosixPath(parts[4]).stem
        return f"/{parts[3]}/{stem}.md"
    return ""
