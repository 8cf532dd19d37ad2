"""Two digests per document and scale: of its cells, and of the identities of all runs behind them.

    python tests/regression/identities.py

stores those of new documents and of documents whose cells have changed, in
results/reference/identities.json (`make register` calls it). It refuses while other run identities
have moved: a refactoring leaves them all as they are. After a change that is meant to move them,

    python tests/regression/identities.py --moved

stores everything anew; CHANGELOG.md must then name the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

from purifiers.core.artifacts import read_json, write_text
from purifiers.plan.graph import with_ancestors
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.scale import scale_names

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "results" / "reference" / "identities.json"
COMMAND = "python tests/regression/identities.py --moved"


@contextlib.contextmanager
def official_data_only() -> Iterator[None]:
    """An empty data folder, so that subsets or copies in one's own move no identity."""
    before = os.environ.get("PURIFYBENCH_DATA")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["PURIFYBENCH_DATA"] = empty
        try:
            yield
        finally:
            del os.environ["PURIFYBENCH_DATA"]
            if before is not None:
                os.environ["PURIFYBENCH_DATA"] = before


class Digests(TypedDict):
    """What is stored of a document at a scale."""

    cells: str  # of the ids of its cells
    runs: str  # of the identities of all runs behind them, inputs included


def digests(plan: Plan) -> dict[str, Digests]:
    """Document name to its digests; documents without runs are left out."""
    result: dict[str, Digests] = {}
    for name, document in plan.documents.items():
        if runs := with_ancestors(plan.score_runs(name)):
            cells = (f"{cell.block}/{cell.row}/{cell.column}" for cell in document.cells)
            identities = (f"{run.stage}/{run.id}" for run in runs)
            result[name] = {"cells": _digest(cells), "runs": _digest(sorted(identities))}
    return result


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def stored() -> dict[str, dict[str, Digests]]:
    """The stored digests: scale to document."""
    by_scale: dict[str, dict[str, Digests]] = read_json(STORED)
    return by_scale


def moved(now: dict[str, Digests], before: dict[str, Digests]) -> list[str]:
    """Documents whose run identities differ although their cells are the same."""
    return [
        name
        for name, digest in now.items()
        if name in before
        and digest["cells"] == before[name]["cells"]
        and digest["runs"] != before[name]["runs"]
    ]


def changed(now: dict[str, Digests], before: dict[str, Digests]) -> list[str]:
    """Documents that are new, gone, or have other cells."""
    return sorted(
        name
        for name in now.keys() | before.keys()
        if name not in now or name not in before or now[name]["cells"] != before[name]["cells"]
    )


def main() -> int:
    """Store the digests; 1 if that would hide moved identities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moved", action="store_true", help="store moved identities, too")
    arguments = parser.parse_args()
    with official_data_only():
        by_scale = {name: digests(make_plan(ROOT, name)) for name in scale_names(ROOT)}
    before = stored() if STORED.exists() else {}
    for scale, now in by_scale.items():
        names = [] if arguments.moved else moved(now, before.get(scale, {}))
        if names:
            print(
                f"run identities moved at {scale}: {', '.join(names)}; undo the change, or run "
                f"{COMMAND} and name the reason in CHANGELOG.md",
                file=sys.stderr,
            )
            return 1
    write_text(STORED, json.dumps(by_scale, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
