"""Files below the data folder that attacks of a plan read, nothing downloads, and are not there."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.data import data_root
from purifiers.core.spec import AttackSpec
from purifiers.core.traits import Layout, met
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.plan import Plan


def missing_files(plan: Plan) -> list[str]:
    """One line per folder with missing files of unfinished attacks: which, for what, where from."""
    missing: dict[tuple[Path, str], set[str]] = defaultdict(set)
    readers: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for name in plan.documents:
        for run in with_ancestors(plan.score_runs(name)):
            absent = [(layout, path) for layout, path in _read(run) if not path.exists()]
            if absent and not RunFolder(plan.runs_root, run.stage, run.id).complete():
                for layout, path in absent:
                    missing[path.parent, layout.origin].add(path.name)
                    readers[path.parent, layout.origin].add(name)
    return [
        f"{folder}: missing: {', '.join(sorted(names))}; without them cells of "
        f"{', '.join(sorted(readers[folder, origin]))} fail: {origin}"
        for (folder, origin), names in missing.items()
    ]


def files_read(plan: Plan) -> list[Path]:
    """Files below the data folder that the attacks of a plan read, by name; there or not."""
    return sorted({path for run in plan.runs.values() for _, path in _read(run)})


def _read(run: Run) -> list[tuple[Layout, Path]]:
    """What a run reads if it is an attack; nothing for the other stages."""
    if not isinstance(run.spec, AttackSpec):
        return []
    attack = run.spec.attack
    described = registry.describe("attack", attack.component)
    parameters = {**described.parameters, **attack.parameters}
    return [
        (layout, data_root() / pattern.format(**parameters))
        for layout in described.traits.reads
        if met(layout.when, parameters)
        for pattern in layout.files
    ]
