"""Write the Markdown sources of the site and copy the files that they show."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from purifiers.core.artifacts import write_text
from purifiers.core.errors import UserError
from purifiers.plan.cells import ScaleInfo
from purifiers.plan.scale import load_scale
from purifiers.report.status import paper_heading
from purifiers.site import cells, pages
from purifiers.site.links import rewrite
from purifiers.site.prices import measured, predicted
from purifiers.site.results import Row, Table, read_claims, read_ranks, read_tables, scales

TOP = ("ranking", "tables", "claims", "audits", "figures", "prices", "speed", "fidelity")
"""Pages of the menu, in order."""
RANKING = "field"
"""The suite's own document, which is no paper."""
EXTRA = "_extra"
"""Folder of the files that the site offers unchanged."""
AUDITS = "How much the protocols overstate robustness: the accuracy under each paper's own attack \
beside that under attacks through the whole defence. The tables list every attack."
FIGURES = "Single images, curves and charts, drawn from the committed results."

RANKING_PICTURES = {
    "ranking": "Chart of what each purifier gains over its base, under the audit and the protocol",
    "attacks": "Heat map of the accuracy of all defences under all attacks",
}
"""Stems of the ranking's pictures and their alternative texts."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#$|~])")


def escaped(text: str) -> str:
    """Escape text for use in Markdown."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


class Sources:
    """The site's sources below ``folder``.

    Args:
        root: the repository.
        folder: an empty folder.

    Raises:
        UserError: a damaged table, claim or declaration.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.papers = pages.Papers(root)
        self.scales: list[ScaleInfo] = [load_scale(root, name).info() for name in scales(root)]
        self.tables: dict[str, dict[str, list[Table]]] = {}
        self.all: list[Table] = [t for s in self.scales for t in read_tables(root, s.name)]
        self.papers.check(self.all)
        for paper in self.papers.papers:
            own = [table for table in self.all if table.paper == paper]
            stems = dict.fromkeys([*self.papers.stems(paper), *(t.document for t in own)])
            grouped = {stem: [t for t in own if t.document == stem] for stem in stems}
            self.tables[paper] = {stem: found for stem, found in grouped.items() if found}
        self.shown = [paper for paper, documents in self.tables.items() if documents]
        self.known = {f"/{p}/{d}.md" for p in self.shown for d in [*self.tables[p], "index"]}
        self.known |= {f"/{p}/differences.md" for p in self.shown if self._readme(p).is_file()}
        self.known |= {f"/{name}.md" for name in ("index", *TOP)}
        self.environment = Environment(
            loader=PackageLoader("purifiers.site"),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        self.environment.filters["md"] = escaped
        common = {"meanings": cells.MEANINGS, "keys": cells.KEYS, "signs": cells.SIGNS}
        self.environment.globals.update(common)
        self.environment.globals["macros"] = self.environment.get_template("macros.html").module

    def write(self) -> None:
        """Write all sources."""
        for paper in self.shown:
            self._paper(paper)
        self._page("index", "index", top=TOP, papers=self._overview(), scales=self.scales,
                   n_tables=sum(len(of) for p, of in self.tables.items() if p != RANKING),
                   n_papers=len([paper for paper in self.shown if paper != RANKING]))  # fmt: skip
        listed = [entry for paper in self.shown for entry in self._listed(paper, f"{paper}/")]
        self._page("tables", "tables", documents=listed, scales=self.scales)
        self._ranking()
        self._claims()
        self._gallery("audits", "Audits", AUDITS, True)
        self._gallery("figures", "Figures and images", FIGURES, False)
        texts = [(info.name, predicted(self.root, info.name)) for info in self.scales]
        self._page("prices", "prices", measured=measured(self.all), predicted=texts)
        self._speed()
        self._write("fidelity", self._repository_page("benchmarks/FIDELITY.md") or "# Fidelity\n")

    def _paper(self, paper: str) -> None:
        differences = f"/{paper}/differences.md" in self.known
        self._page(
            f"{paper}/index",
            "paper",
            id=paper,
            name=paper_heading(self.root, paper),
            title=self.papers.title(paper),
            differences=differences,
            documents=self._listed(paper, ""),
            scales=self.scales,
        )
        if differences:
            text = self._repository_page(f"benchmarks/{paper}/README.md")
            self._write(f"{paper}/differences", text)
        for document, tables in self.tables[paper].items():
            self._document(paper, document, tables)

    def _document(self, paper: str, document: str, tables: list[Table]) -> None:
        content = self.papers.document(paper, document)
        parts, first = [], 0
        for table in tables:
            info = next(info for info in self.scales if info.name == table.scale)
            text = rewrite(pages.notes(table, content), str(table.csv.parent), self.known)
            parts.append(
                {
                    "scale": table.scale,
                    "stamp": pages.stamp(table, info),
                    "counts": self.papers.counts([table]),
                    "images": self._images(table),
                    "blocks": pages.grids(table, content, first),
                    "notes": text,
                    "command": table.command,
                    "csv": self._offered(table.csv),
                    "provenance": self._offered(table.csv.with_suffix(".provenance.json")),
                }
            )
            first += len(table.rows)
        self._page(
            f"{paper}/{document}",
            "document",
            heading=pages.heading(self.papers, paper, document),
            paper=paper_heading(self.root, paper),
            where=content.get("where", ""),
            parts=parts,
            has_cells=first > 0,
            data=pages.cell_data(tables, content),
        )

    def _listed(self, paper: str, base: str) -> list[dict[str, Any]]:
        entries = []
        for stem, tables in self.tables[paper].items():
            by_scale = {table.scale: self.papers.counts([table]) for table in tables}
            entries.append(
                {
                    "stem": stem,
                    "link": f"{base}{stem}.html",
                    "paper": paper_heading(self.root, paper),
                    "name": pages.name_of(stem),
                    "title": self.papers.document(paper, stem).get("title", ""),
                    "status": self.papers.status(paper, stem),
                    "counts": [by_scale.get(info.name, []) for info in self.scales],
                }
            )
        return entries

    def _overview(self) -> list[dict[str, Any]]:
        """Counts per paper and scale over the documents that have numbers to reproduce."""
        rows = []
        for paper in self.shown:
            own = [table for table in self.all if table.paper == paper]
            by_scale = [[t for t in own if t.scale == info.name] for info in self.scales]
            name = paper_heading(self.root, paper)
            counts = [self.papers.counts(tables) for tables in by_scale]
            differences = f"/{paper}/differences.md" in self.known
            rows.append({"id": paper, "name": name, "counts": counts, "differences": differences})
        return rows

    def _speed(self) -> None:
        """Write the page of the timing tables, each with its chart, and of their method."""
        parts = ["# Speed"]
        for path in sorted((self.root / "results/tables/timing").glob("*.md")):
            title, _, rest = path.read_text(encoding="utf-8").partition("\n")
            picture = self._picture(path.with_suffix(".png"), "timing")
            chart = f"![Chart of this table]({picture}){{.picture}}" if picture else ""
            parts += [f"#{title}", chart, _lowered(rest)]
        parts.append(_lowered(self._repository_page("benchmarks/timing/README.md")))
        self._write("speed", "\n\n".join(parts))

    def _ranking(self) -> None:
        """Write the page of the ranked defences, with its pictures."""
        parts = []
        listed: list[tuple[str, str, Row]] = []
        shared: dict[str, dict[str, str]] = {}
        for table in self.all:
            if self.papers.document(table.paper, table.document).get("plot") == "ranking":
                shared[table.scale] = pages.ranking_origin(table)
        for info in self.scales:
            ranked = read_ranks(self.root, info.name)
            folders = sorted({p.parent for p in self._tables(info.name).glob("*/ranks.csv")})
            pictures = [
                {
                    "path": self._picture(folder / f"{stem}.png", f"{info.name}-{folder.name}"),
                    "alt": alt,
                }
                for folder in folders
                for stem, alt in RANKING_PICTURES.items()
            ]
            if ranked:
                shared.setdefault(info.name, {"Scale": info.name})
                shown = [image for image in pictures if image["path"]]
                views: dict[str, list[dict[str, Any]]] = {}
                for name, rows in ranked.items():
                    views[name] = [
                        pages.rank_view(row, len(listed) + k) for k, row in enumerate(rows)
                    ]
                    listed += [(info.name, name, row) for row in rows]
                parts.append({"scale": info, "sections": views, "images": shown})
        data = pages.rank_data(listed, shared)
        self._page("ranking", "ranking", parts=parts, columns=pages.RANK_COLUMNS, data=data)

    def _tables(self, scale: str) -> Path:
        return self.root / "results" / "tables" / scale

    def _claims(self) -> None:
        by_paper: dict[str, list[dict[str, str]]] = {}
        for info in self.scales:
            for paper, claims in read_claims(self.root, info.name).items():
                by_paper.setdefault(paper, []).extend(claims)
        papers = [
            {
                "id": paper,
                "name": paper_heading(self.root, paper),
                "counts": pages.claim_counts(by_paper[paper]),
                "claims": [pages.claim_view(claim) for claim in by_paper[paper]],
            }
            for paper in self.shown
            if paper in by_paper
        ]
        self._page("claims", "claims", papers=papers, scales=self.scales)

    def _gallery(self, page: str, title: str, lead: str, audits: bool) -> None:
        """Write a page of all images of the audits, or of all other documents."""
        papers = []
        for paper in self.shown:
            documents = [
                {
                    "heading": pages.heading(self.papers, paper, stem),
                    "page": f"{paper}/{stem}",
                    "images": images,
                }
                for stem, tables in self.tables[paper].items()
                if stem.startswith("audit") == audits
                and ((images := [i for table in tables for i in self._images(table)]) or audits)
            ]
            if documents:
                name = paper_heading(self.root, paper)
                papers.append({"id": paper, "name": name, "documents": documents})
        self._page(page, "gallery", title=title, lead=lead, papers=papers)

    def _images(self, table: Table) -> list[dict[str, str]]:
        what = pages.heading(self.papers, table.paper, table.document)
        listed = []
        for path in table.images:
            block = path.stem.partition("_images")[2].strip("_")
            kind = "Clean, adversarial and purified images" if "_images" in path.stem else "Chart"
            place = f" ({block})" if block else ""
            alt = f"{kind} of {table.paper}, {what}{place}, scale {table.scale}"
            name = f"{table.scale}-{table.paper}"
            listed.append({"path": self._picture(path, name), "alt": alt, "scale": table.scale})
        return listed

    def _picture(self, path: Path, prefix: str) -> str:
        """Store a picture without loss as WebP, which takes 40 % of PNG's bytes.

        Returns:
            Path of the page's link; empty if the picture does not exist.

        Raises:
            UserError: the file is not an image.
        """
        target = self.folder / "pictures" / f"{prefix}-{path.stem}.webp"
        if path.is_file() and not target.is_file():
            target.parent.mkdir(exist_ok=True)
            try:
                with Image.open(path) as picture:
                    picture.convert("RGB").save(target, lossless=True, method=4)
            except OSError as error:
                raise UserError(
                    f"{path}: not readable as an image ({error}); restore it with git checkout"
                ) from None
        return f"/pictures/{target.name}" if target.is_file() else ""

    def _offered(self, path: Path) -> str:
        """Compress a file of results/tables to the site; empty if it does not exist."""
        inside = path.relative_to(self.root / "results/tables")
        name = Path("data") / inside.with_name(f"{inside.name}.gz")
        if not path.is_file():
            return ""
        (self.folder / EXTRA / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / EXTRA / name).write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        return name.as_posix()

    def _repository_page(self, name: str) -> str:
        """Text of a Markdown page of the repository, with links to the site; empty without it."""
        path = self.root / name
        if not path.is_file():
            return ""
        return rewrite(path.read_text(encoding="utf-8"), str(Path(name).parent), self.known)

    def _readme(self, paper: str) -> Path:
        return self.root / "benchmarks" / paper / "README.md"

    def _page(self, page: str, template: str, **values: Any) -> None:
        rendered = self.environment.get_template(f"{template}.md").render(**values)
        self._write(page, rendered)

    def _write(self, page: str, text: str) -> None:
        path = self.folder / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _lowered(markdown: str) -> str:
    """Markdown with every heading one level lower."""
    return re.sub(r"^#", "##", markdown, flags=re.MULTILINE)
