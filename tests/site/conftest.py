"""The site of this repository's committed tables, built once, and a check of a site's files."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from purifiers.site import sources
from purifiers.site.build import write_site

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the site, with the prices left out: planning all scales takes a minute."""
    out = tmp_path_factory.mktemp("committed") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "predicted", lambda root, scale: f"price of {scale}")
        write_site(ROOT, out)
    return out


class _Page(HTMLParser):
    """One page.

    Attributes:
        links: targets of all ``href`` and ``src``, by tag.
        ids: all ids.
        bare: sources of the images without an alternative text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.bare: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.links += [(tag, v) for name in ("href", "src") if (v := given.get(name)) is not None]
        if tag == "img" and not (given.get("alt") or "").strip():
            self.bare.append(given.get("src") or "")


def _dead(pages: dict[Path, _Page]) -> list[str]:
    """Links inside the site whose file or fragment does not exist."""
    dead = []
    for path, page in pages.items():
        for _, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].ids if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                dead.append(f"{path.name}: {link}")
    return dead


def _outside(pages: dict[Path, _Page]) -> list[str]:
    """Scripts, styles and images that a page would load from elsewhere."""
    return [
        f"{path.name}: {link}"
        for path, page in pages.items()
        for tag, link in page.links
        if tag != "a" and urlsplit(link).netloc
    ]


@pytest.fixture(scope="session")
def problems() -> Callable[[Path], list[str]]:
    """Lists the dead links, the files from elsewhere and the images without text of a site."""

    def listed(site: Path) -> list[str]:
        pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
        assert pages
        bare = [f"{path.name}: {image} has no alt" for path, p in pages.items() for image in p.bare]
        return _dead(pages) + _outside(pages) + bare

    return listed
