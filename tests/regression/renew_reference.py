"""Renew the stored counts of the smoke scale, results/reference/smoke.json.

    snakemake && python tests/regression/renew_reference.py

reads all counts from results/runs; every smoke run must be finished. In a hurry,

    python tests/regression/renew_reference.py --quick

computes the part that the test compares anew in a temporary folder (about a minute) and stores
nothing else. To hold all of results/runs against what is stored, and change nothing:

    python tests/regression/renew_reference.py --check

Renew after a change that is meant to move numbers, and say in the commit why they moved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from reference import (
    ROOT,
    SCALE,
    STORED,
    chosen_runs,
    compute,
    counts,
    differences,
    keys,
    stored_counts,
)

from purifiers.core.artifacts import RunFolder, read_json, write_text
from purifiers.core.errors import UserError
from purifiers.core.provenance import fingerprint
from purifiers.plan.plan import make_plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="compute the compared part alone")
    modes.add_argument("--check", action="store_true", help="compare, change nothing")
    arguments = parser.parse_args()
    plan = make_plan(ROOT, SCALE)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            found = compute(chosen_runs(plan), plan, Path(folder) / "runs")
    else:
        runs = [plan.runs[score] for score in keys(plan)]
        lacking = [run for run in runs if not RunFolder(plan.runs_root, "score", run.id).complete()]
        if lacking:
            raise UserError(f"{len(lacking)} of {len(runs)} score runs are missing; run snakemake")
        found = counts(runs, plan, plan.runs_root)
    if arguments.check:
        stored = read_json(STORED)
        same = stored["fingerprint"] == fingerprint()
        lines = differences(stored_counts(runs, plan, stored), found, same)
        print("\n".join([*lines, f"{len(found) - len(lines)} of {len(found)} counts agree"]))
        return 1 if lines else 0
    write_text(STORED, as_text(found))
    print(f"{STORED.relative_to(ROOT)}: {len(found)} counts")
    return 0


def as_text(found: dict[str, tuple[int, int]]) -> str:
    """JSON with a count per line, so that a change of one is a change of one line."""
    lines = ",\n".join(f"  {json.dumps(key)}: {list(found[key])}" for key in sorted(found))
    told = {"fingerprint": fingerprint(), "scale": SCALE}
    rest = json.dumps(told, indent=1, sort_keys=True).removeprefix("{\n")
    return f'{{\n "counts": {{\n{lines}\n }},\n{rest}\n'


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
