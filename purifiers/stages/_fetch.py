"""Fetch and check the data sets of a scale, before any run needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.data import data_root
from purifiers.core.data_layouts import SPLITS
from purifiers.core.errors import UserError
from purifiers.datasets._base import Dataset
from purifiers.plan.missing_files import files_read, missing_files
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import Scale, load_scale


def fetch_data(folder: Path, scale_name: str) -> int:
    """Read every data set of a scale completely; download official files that are missing.

    Prints one line per data set: present or downloaded, with layout and exactness; or missing, with
    where to get it. Goes on after a data set that fails. Then one line per folder with files that
    attacks read, such as those of CIFAR-10-C.

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
    plan = make_plan(folder, scale_name)
    missing = missing_files(plan)
    for line in missing:
        print(line, flush=True)
    read = files_read(plan)
    for place in sorted({path.parent for path in read}):
        if all(path.exists() for path in read if path.parent == place):
            print(f"{place.name}: present, without a checksum", flush=True)
    return failed + len(missing)


def _needs_files_to_plan(name: str) -> bool:
    traits = registry.dataset_traits(name)
    return traits.train is None or traits.test is None


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
