"""One digest per document and scale over the identities of all runs behind it.

    python tests/regression/identities.py

stores them in results/reference/identities.json. A refactoring leaves every digest as it is. Renew
them only after a change that is meant to give runs another identity, and name the reason in
CHANGELOG.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from purifiers.core.artifacts import read_json, write_text
from purifiers.plan.graph import with_ancestors
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.scale import scale_names

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "results" / "reference" / "identities.json"
COMMAND = "python tests/regression/identities.py"

Digests = dict[str, dict[str, str]]
"""Scale to document to digest."""


def digests(plan: Plan) -> dict[str, str]:
    """Document name to the digest of its runs, inputs included; documents without runs are left
    out."""
    result = {}
    for name in plan.documents:
        runs = with_ancestors(plan.score_runs(name))
        if runs:
            identities = "\n".join(sorted(f"{run.stage}/{run.id}" for run in runs))
            result[name] = hashlib.sha256(identities.encode()).hexdigest()[:16]
    return result


def stored() -> Digests:
    """The stored digests."""
    digests_by_scale: Digests = read_json(STORED)
    return digests_by_scale


def main() -> None:
    """Store the digests of all scales."""
    by_scale = {name: digests(make_plan(ROOT, name)) for name in scale_names(ROOT)}
    write_text(STORED, json.dumps(by_scale, indent=1, sort_keys=True) + "\n")
    print(f"{STORED.relative_to(ROOT)}: {sum(map(len, by_scale.values()))} digests")


if __name__ == "__main__":
    main()
