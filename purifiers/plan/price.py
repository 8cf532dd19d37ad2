"""Estimate a plan's cost before it runs: jobs, device-hours and disk space."""

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
"""Float32 operations per second assumed for a GPU without measured throughput: about 45 % of the
13.4e12 of an RTX 2080 Ti, the card of the AID-Purifier paper. Our choice."""


@dataclass(frozen=True)
class Throughput:
    """Measured throughput of networks.

    Attributes:
        networks: per network the multiply-adds of one forward pass of one image (``macs``) and,
            per measured device, its seconds.
    """

    networks: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, root: Path) -> Throughput:
        """Read ``workflow/throughput.yaml``."""
        path = root / "workflow" / "throughput.yaml"
        return cls(yaml.safe_load(path.read_text()) or {} if path.exists() else {})

    def seconds(self, run: Run, device: str) -> float | None:
        """Predict the seconds of a run on a device; None if a network of it was never measured."""
        total = 0.0
        for network, passes in run.cost.items():
            measured = self.networks.get(network)
            if measured is None:
                return None
            total += passes * measured.get(device, 2 * measured["macs"] / ASSUMED_FLOPS)
        return total


@dataclass(frozen=True)
class Price:
    """Predicted cost of runs that have not finished.

    Attributes:
        runs: number of runs.
        jobs: number of jobs.
        hours: device-hours, without the runs counted in ``unknown``.
        unknown: number of runs with a network that was never measured.
        gibibytes: size of their files, in GiB.
        at_most: ``hours`` is an upper bound, because a training may stop early.
    """

    runs: int
    jobs: int
    hours: float
    unknown: int
    gibibytes: float
    at_most: bool


def price(runs: Iterable[Run], plan: Plan, throughput: Throughput, device: str) -> Price:
    """Add up the predicted cost of the runs that have not finished."""
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
    """Format the cost as a text table: one line per document, then the total."""
    throughput = Throughput.load(plan.root)
    device = "cpu" if plan.scale.setting("device", "auto") == "cpu" else "gpu"
    lines = [
        f"scale {plan.scale.info().label}; hours on one {device}; finished runs are not counted",
        f"{'document':<22}{'cells':>7}{'to run':>8}{'runs':>7}{'jobs':>6}{'hours':>11}{'GiB':>9}",
    ]
    for name, document in plan.documents.items():
        planned = sum(cell.state == "planned" for cell in document.cells)
        cost = price(with_ancestors(plan.score_runs(name)), plan, throughput, device)
        lines.append(_line(name, len(document.cells), planned, cost))
    cells = sum(len(d.cells) for d in plan.documents.values())
    planned = sum(c.state == "planned" for d in plan.documents.values() for c in d.cells)
    total = price(plan.runs.values(), plan, throughput, device)
    lines.append(_line("total", cells, planned, total))
    if device == "gpu":
        lines.append(
            f"GPU hours assume {ASSUMED_FLOPS / 1e12:g} TFLOP/s for networks not measured on a GPU."
        )
    if total.at_most:
        lines.append("Trainings with early stopping are counted to their last epoch.")
    if total.unknown:
        lines.append(
            f"+ {total.unknown} runs are not counted: the throughput of their networks is unknown."
        )
    return "\n".join(lines)


def _line(name: str, cells: int, planned: int, cost: Price) -> str:
    hours = f"{cost.hours:.2f}" + ("+" if cost.unknown else "")
    return (
        f"{name:<22}{cells:>7}{planned:>8}{cost.runs:>7}{cost.jobs:>6}{hours:>11}"
        f"{cost.gibibytes:>9.2f}"
    )
