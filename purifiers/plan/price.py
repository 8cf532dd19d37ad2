"""What a plan costs, before it runs: jobs, device-hours, disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import ClassifierSpec, PurifierSpec, SubstituteSpec
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.plan import Plan

ASSUMED_FLOPS = 6e12
"""Sustained float32 operations per second of a GPU that nobody has measured: about 45 % of an RTX
2080 Ti's 13.4e12, the card of the AID-Purifier paper. Our choice."""


@dataclass(frozen=True)
class Throughput:
    """Measured seconds per forward pass of one image, and multiply-adds, per network."""

    networks: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, root: Path) -> Throughput:
        """Read ``workflow/throughput.yaml``."""
        path = root / "workflow" / "throughput.yaml"
        return cls(yaml.safe_load(path.read_text()) or {} if path.exists() else {})

    def seconds(self, run: Run, device: str) -> float | None:
        """Predicted seconds of a run on a device; None where a network was never measured."""
        total = 0.0
        for network, passes in run.cost.items():
            known = self.networks.get(network)
            if known is None:
                return None
            total += passes * known.get(device, 2 * known["macs"] / ASSUMED_FLOPS)
        return total


@dataclass(frozen=True)
class Price:
    """Cost of some runs; ``unknown`` counts those of networks that were never measured, and with
    ``at_most`` some of them train and may stop early."""

    runs: int
    jobs: int
    hours: float
    unknown: int
    gibibytes: float
    at_most: bool


def price(runs: Iterable[Run], plan: Plan, throughput: Throughput, device: str) -> Price:
    """Add up the runs that are not done yet."""
    open_runs = [run for run in runs if not RunFolder(plan.runs_root, run.stage, run.id).complete()]
    seconds = [throughput.seconds(run, device) for run in open_runs]
    return Price(
        runs=len(open_runs),
        jobs=len({plan.batches[run.id].id for run in open_runs}),
        hours=sum(s for s in seconds if s is not None) / 3600,
        unknown=sum(s is None for s in seconds),
        gibibytes=sum(run.size_bytes for run in open_runs) / 2**30,
        at_most=any(_may_stop_early(run) for run in open_runs),
    )


def _may_stop_early(run: Run) -> bool:
    match run.spec:
        case ClassifierSpec(training=recipe) | SubstituteSpec(training=recipe):
            return bool(recipe.parameters.get("early_stopping"))
        case PurifierSpec(method=recipe):
            return bool(recipe.parameters.get("early_stopping"))
    return False


def describe_price(plan: Plan) -> str:
    """A table for people: each document on its own, then everything together."""
    throughput = Throughput.load(plan.root)
    device = "cpu" if plan.scale.setting("device", "auto") == "cpu" else "gpu"
    lines = [
        f"scale {plan.scale.info().label}; hours on one {device}; what is done is subtracted",
        f"{'document':<22}{'cells':>7}{'to run':>8}{'runs':>7}{'jobs':>6}{'hours':>11}{'GiB':>9}",
    ]
    for name, document in plan.documents.items():
        planned = sum(cell.state == "planned" for cell in document.cells)
        found = price(with_ancestors(plan.score_runs(name)), plan, throughput, device)
        lines.append(_line(name, len(document.cells), planned, found))
    cells = sum(len(d.cells) for d in plan.documents.values())
    planned = sum(c.state == "planned" for d in plan.documents.values() for c in d.cells)
    total = price(plan.runs.values(), plan, throughput, device)
    lines.append(_line("all together", cells, planned, total))
    if device == "gpu":
        lines.append(
            f"GPU hours are estimated at {ASSUMED_FLOPS / 1e12:g} TFLOP/s where not measured."
        )
    if total.at_most:
        lines.append("Trainings that may stop early are counted to their last epoch.")
    if total.unknown:
        lines.append(
            f"{total.unknown} runs use networks without a measured throughput: not counted."
        )
    return "\n".join(lines)


def _line(name: str, cells: int, planned: int, found: Price) -> str:
    hours = f"{found.hours:.2f}" + ("+" if found.unknown else "")
    return (
        f"{name:<22}{cells:>7}{planned:>8}{found.runs:>7}{found.jobs:>6}{hours:>11}"
        f"{found.gibibytes:>9.2f}"
    )
