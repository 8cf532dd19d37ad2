"""Fetch and check the data sets of a scale, before any run needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from purifiers.attacks._cifar10_c import FOLDER, ORIGIN
from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.data import data_root
from purifiers.core.data_layouts import SPLITS
from purifiers.core.errors import UserError
from purifiers.core.spec import AttackSpec
from purifiers.core.traits import met
from purifiers.datasets._base import Dataset
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.scale import Scale, load_scale


def fetch_data(folder: Path, scale_name: str) -> int:
    """Read every data set of a scale completely; download official files that are missing.

    Prints one line per data set: present or downloaded, with layout and exactness; or missing, with
    where to get it. Goes on after a data set that fails. CIFAR-10-C is one of them if a table reads
    its files.

    Args:
        folder: the repository.

    Returns:
        The number of data sets that are missing or cannot be read.

    Raises:
        UserError: an unknown scale, or a data folder that does not exist.
    """
    scale = load_scale(folder, scale_name)
    root = data_root()
    failed = 0
    for name, parameters in _used(scale):
        try:
            line = _line(build(registry.load("dataset", name), **parameters), root)
        except (UserError, OSError) as error:
            failed += 1
            line = f"missing or damaged: {error}"
        print(f"{name}: {line}", flush=True)
    if failed and any(_needs_files_to_plan(name) for name, _ in _used(scale)):
        return failed
    if corruptions := _corruptions(make_plan(folder, scale_name)):
        names = [f"{name}.npy" for name in (*corruptions, "labels")]
        missing = [name for name in names if not (root / FOLDER / name).is_file()]
        line = f"missing: {', '.join(missing)} in {root / FOLDER}: {ORIGIN}"
        print(f"{FOLDER}: {line if missing else 'present, without a checksum'}", flush=True)
        failed += bool(missing)
    return failed


def _needs_files_to_plan(name: str) -> bool:
    traits = registry.dataset_traits(name)
    return traits.train is None or traits.test is None


def _corruptions(plan: Plan) -> list[str]:
    """The corruptions that the runs of a plan read from files."""
    specs = [run.spec.attack for run in plan.runs.values() if isinstance(run.spec, AttackSpec)]
    described = {spec.component: registry.describe("attack", spec.component) for spec in specs}
    return sorted(
        {
            spec.parameters["corruption"]
            for spec in specs
            for layout in described[spec.component].traits.reads
            if met(layout.when, {**described[spec.component].parameters, **spec.parameters})
        }
    )


def _used(scale: Scale) -> list[tuple[str, dict[str, Any]]]:
    """Component and parameters of each data set, once."""
    used: list[tuple[str, dict[str, Any]]] = []
    for entry in scale.declared["datasets"].values():
        if entry and (entry["use"], entry.get("parameters", {})) not in used:
            used.append((entry["use"], entry.get("parameters", {})))
    return used


def _line(dataset: Dataset, root: Path) -> str:
    """Load both splits; describe them."""
    before = dataset.found(root)
    sizes = [len(dataset.load(split, root)[1]) for split in SPLITS]
    after = dataset.found(root)
    had = set(before.paths) if before else set()
    state = "downloaded" if after and set(after.paths) - had else "present"
    source = dataset.source(root)
    note = source.note or f"{sizes[0]} training and {sizes[1]} test images"
    return f"{state}: {source.text}; {note}"
