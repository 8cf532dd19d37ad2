"""Estimate a plan's cost before it runs: jobs, device-hours and disk space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import ClassifierSpec, PurifierSpec, SubstituteSpec
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.missing_files import missing_files
from purifiers.plan.plan import Plan
from purifiers.plan.throughput import Throughput


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
        scaled: for pairs of a network that is not measured on the device and the measured network
            that its throughput is scaled from, their part of ``hours``.
    """

    runs: int
    jobs: int
    hours: float
    unknown: int
    gibibytes: float
    at_most: bool
    scaled: dict[tuple[str, str], float] = field(default_factory=dict)


def price(runs: Iterable[Run], plan: Plan, throughput: Throughput, device: str) -> Price:
    """Add up the predicted cost of the runs that have not finished.

    Args:
        device: device kind of the measurements, such as ``cpu`` or ``h200``.

    Raises:
        UserError: nothing is measured on the device.
    """
    open_runs = [run for run in runs if not RunFolder(plan.runs_root, run.stage, run.id).complete()]
    hours, unknown = 0.0, 0
    scaled: dict[tuple[str, str], float] = defaultdict(float)
    for run in open_runs:
        estimates = throughput.estimates(run, device)
        if estimates is None:
            unknown += 1
            continue
        for network, passes in run.cost.items():
            part = passes * estimates[network].seconds / 3600
            hours += part
            if estimates[network].scaled_from:
                scaled[network, estimates[network].scaled_from] += part
    return Price(
        runs=len(open_runs),
        jobs=len({plan.batches[run.id].id for run in open_runs}),
        hours=hours,
        unknown=unknown,
        gibibytes=sum(run.size_bytes for run in open_runs) / 2**30,
        at_most=any(_may_stop_early(run) for run in open_runs),
        scaled=dict(scaled),
    )


def _may_stop_early(run: Run) -> bool:
    match run.spec:
        case ClassifierSpec(training=recipe) | SubstituteSpec(training=recipe):
            return bool(recipe.parameters.get("early_stopping"))
        case PurifierSpec(method=recipe):
            return bool(recipe.parameters.get("early_stopping"))
    return False


def describe_price(plan: Plan, device: str = "", rate: float | None = None) -> str:
    """Format the cost as a text table: one line per document, then the total.

    Args:
        device: device kind to price for; by default ``cpu`` at scales of the processor, else the
            GPU on which most networks are measured.
        rate: price of a device-hour, in any currency; None: no column of money.

    Raises:
        UserError: nothing is measured on the device.
    """
    throughput = Throughput.load(plan.root)
    kind = device or throughput.default_device(plan.scale.setting("device", "auto"))
    lines = [
        f"scale {plan.scale.info().label}; hours on one {kind}; finished runs are not counted",
        f"{'document':<22}{'cells':>7}{'to run':>8}{'runs':>7}{'jobs':>6}{'hours':>11}{'GiB':>9}"
        + (f"{'money':>12}" if rate is not None else ""),
    ]
    for name, document in plan.documents.items():
        planned = sum(cell.state == "planned" for cell in document.cells)
        cost = price(with_ancestors(plan.score_runs(name)), plan, throughput, kind)
        lines.append(_line(name, len(document.cells), planned, cost, rate))
    cells = sum(len(d.cells) for d in plan.documents.values())
    planned = sum(c.state == "planned" for d in plan.documents.values() for c in d.cells)
    total = price(plan.runs.values(), plan, throughput, kind)
    lines.append(_line("total", cells, planned, total, rate))
    lines += _scaling_notes(total, kind)
    if total.at_most:
        lines.append("Trainings with early stopping are counted to their last epoch.")
    if total.unknown:
        lines.append(
            f"+ {total.unknown} runs are not counted: the throughput of their networks is unknown."
        )
    lines += missing_files(plan)
    return "\n".join(lines)


def _scaling_notes(total: Price, kind: str) -> list[str]:
    """One line per measured network that others are scaled from, with their part of the hours."""
    by_reference: dict[str, dict[str, float]] = defaultdict(dict)
    for (network, reference), hours in total.scaled.items():
        by_reference[reference][network] = hours
    lines = []
    for reference, networks in sorted(
        by_reference.items(), key=lambda pair: -sum(pair[1].values())
    ):
        first = max(networks, key=lambda network: networks[network])
        others = f" and {len(networks) - 1} more" if len(networks) > 1 else ""
        lines.append(
            f"Not measured on {kind}, scaled from {reference}: {first}{others} "
            f"({sum(networks.values()):.2f} hours)."
        )
    return lines


def _line(name: str, cells: int, planned: int, cost: Price, rate: float | None) -> str:
    hours = f"{cost.hours:.2f}" + ("+" if cost.unknown else "")
    money = "" if rate is None else f"{cost.hours * rate:>12.2f}"
    return (
        f"{name:<22}{cells:>7}{planned:>8}{cost.runs:>7}{cost.jobs:>6}{hours:>11}"
        f"{cost.gibibytes:>9.2f}{money}"
    )
