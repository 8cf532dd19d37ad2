"""Build the site with Sphinx."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from purifiers.core.errors import UserError
from purifiers.site.sources import EXTRA, Sources

PLACE = Path("results/site")
"""Folder of the site, relative to the repository."""
WARNINGS_SHOWN = 3


def write_site(root: Path, out: Path) -> tuple[int, int]:
    """Write the site; a finished one replaces the old one at once.

    Args:
        root: the repository.
        out: folder of the site; it is replaced if it exists.

    Returns:
        Number of pages and size in bytes.

    Raises:
        UserError: a damaged table or declaration, no tables at all, a missing package, or a folder
            ``out`` that is not a site.
    """
    if out.exists() and not (out / "searchindex.js").is_file():
        raise UserError(f"{out}: exists and is not a site; remove it or pass another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site-") as temporary:
        source, built = Path(temporary) / "source", Path(temporary) / "built"
        source.mkdir()
        sources = Sources(root, source)
        if not sources.all:
            raise UserError(f"{root / 'results/tables'}: has no tables; run make reproduce")
        sources.write()
        _static(source / "_static")
        _sphinx(source, built, Path(temporary) / "doctrees")
        if out.exists():
            shutil.rmtree(out)
        os.replace(built, out)
    written = [path for path in out.rglob("*") if path.is_file()]
    n_pages = sum(path.suffix == ".html" for path in written)
    return n_pages, sum(path.stat().st_size for path in written)


def _static(folder: Path) -> None:
    """Write the style sheets and scripts: the site's own and DataTables as ``itables`` bundles it.

    Browsers refuse to import modules from a folder, but not from a data URL.
    """
    try:
        bundle = files("itables") / "html"
        script, style = (bundle / "dt_bundle.js").read_bytes(), bundle / "dt_bundle.css"
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise _missing(error) from None
    folder.mkdir()
    encoded = base64.b64encode(script).decode()
    loader = f'window.dataTables = import("data:text/javascript;base64,{encoded}");\n'
    (folder / "datatables.js").write_text(loader, encoding="utf-8")
    (folder / "datatables.css").write_bytes(style.read_bytes())
    for name in ("site.js", "site.css"):
        (folder / name).write_bytes((files("purifiers.site") / "static" / name).read_bytes())


def _sphinx(source: Path, out: Path, doctrees: Path) -> None:
    """Turn the Markdown sources into HTML; every warning is an error."""
    try:
        import furo  # noqa: F401
        import myst_parser  # noqa: F401
        from sphinx.application import Sphinx
        from sphinx.errors import SphinxError
        from sphinx.util.console import strip_colors
        from sphinx.util.docutils import docutils_namespace, patch_docutils
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    settings = {
        "project": "PurifyBench",
        "html_title": "PurifyBench",
        "extensions": ["myst_parser"],
        "myst_enable_extensions": ["attrs_inline"],
        "myst_heading_anchors": 4,
        "html_theme": "furo",
        "html_static_path": ["_static"],
        "html_css_files": ["datatables.css", "site.css"],
        "html_js_files": [(name, {"defer": "defer"}) for name in ("datatables.js", "site.js")],
        "html_extra_path": [EXTRA],
        "html_use_index": False,
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "html_permalinks": False,
        "exclude_patterns": [EXTRA],
    }
    warnings = io.StringIO()
    try:
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                srcdir=source,
                confdir=None,
                outdir=out,
                doctreedir=doctrees,
                buildername="html",
                confoverrides=settings,
                status=None,
                warning=warnings,
            )
            app.build()
    except SphinxError as error:
        raise UserError(f"{source}: Sphinx cannot build the site: {error}") from None
    text = strip_colors(warnings.getvalue()).replace(f"{source}/", "")
    if lines := [line for line in text.splitlines() if line.strip()]:
        shown = " | ".join(lines[:WARNINGS_SHOWN])
        raise UserError(f"site: Sphinx warns {len(lines)} times; mend the Markdown: {shown}")
    for name in (".buildinfo", "objects.inv"):
        (out / name).unlink(missing_ok=True)


def _missing(error: Exception) -> UserError:
    return UserError(
        f"site: a package is missing ({error}); run pip install -e '.[site]' or make env"
    )
