"""Predicted and measured cost of the tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from purifiers.core.errors import UserError
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.price import describe_price
from purifiers.site.results import Table


class _Unstarted(Plan):
    """A plan whose runs are all still to do, whatever this checkout has computed."""

    @property
    def runs_root(self) -> Path:
        return self.root / "results" / "runs" / "none"


def predicted(root: Path, scale: str) -> str:
    """The text of ``make plan`` for a scale with nothing computed yet.

    A scale that cannot be planned gets the reason as its text, so that the committed tables can be
    shown in any case.
    """
    try:
        plan = make_plan(root, scale)
        parts = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
        return describe_price(_Unstarted(**parts))
    except UserError as error:
        return f"not planned: {error}"


def measured(tables: list[Table]) -> list[dict[str, Any]]:
    """Hours, runs, devices and date of each table that has a provenance file with a time."""
    return [
        {
            "name": f"{table.paper}/{table.document}",
            "link": f"{table.paper}/{table.document}.html",
            "scale": table.scale,
            "hours": table.provenance["elapsed_seconds"] / 3600,
            "runs": sum((table.provenance.get("runs") or {}).values()),
            "device": ", ".join(_listed(table.provenance, "device")),
            "finished": max(_listed(table.provenance, "finished"), default="")[:10],
        }
        for table in tables
        if table.provenance.get("elapsed_seconds")
    ]


def provenance_text(provenance: dict[str, Any]) -> str:
    """Summarise a provenance file in one line: date, commits, PyTorch, devices and time."""
    finished = [moment[:10] for moment in _listed(provenance, "finished")]
    commits = ", ".join(commit[:7] for commit in _listed(provenance, "git"))
    torch = ", ".join(_listed(provenance, "torch"))
    seconds = provenance.get("elapsed_seconds")
    parts = [
        f"finished {max(finished)}" if finished else "",
        f"commit {commits}" if commits else "",
        f"PyTorch {torch}" if torch else "",
        ", ".join(_listed(provenance, "device") + _listed(provenance, "processor")),
        f"{seconds / 3600:.3g} hours for the whole table" if seconds else "",
    ]
    return "; ".join(filter(None, parts))


def _listed(provenance: dict[str, Any], key: str) -> list[str]:
    """Values of a key, of which a table without finished runs has none."""
    return list(provenance.get(key) or ())
