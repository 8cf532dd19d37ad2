"""Measured throughput of networks, and the seconds that it predicts for a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from purifiers.core.errors import UserError
from purifiers.core.spec import AttackSpec, ClassifierSpec, PurifierSpec, SubstituteSpec
from purifiers.plan.graph import Run

MEASURED_AS = {
    "float32": ("float32",),
    "tf32": ("tf32", "float32"),
    "bfloat16": ("bfloat16", "tf32", "float32"),
}
"""Precisions whose measurements price a run, best first: a slower one is an upper bound."""


@dataclass(frozen=True)
class Measurement:
    """Seconds per image of one network on one device kind, at one precision and batch size.

    Attributes:
        device: kind of the device: ``cpu`` (processor seconds of one thread), or a card such as
            ``h200``.
        precision: of convolutions and matrix products.
        forward: seconds of a forward pass; None: not measured.
        both: seconds of a forward and a backward pass, with gradients of the weights; None: not
            measured.
        batch: images per pass; None: unknown.
        source: where a number comes from that the measuring routine did not write.
    """

    device: str
    precision: str = "float32"
    forward: float | None = None
    both: float | None = None
    batch: int | None = None
    source: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of one pass of a cost, where a forward and a backward pass count as 3."""
        return max(self.forward or 0.0, (self.both or 0.0) / 3)

    def fault(self) -> str:
        """Why the numbers cannot be right; empty if they can."""
        numbers = [number for number in (self.forward, self.both) if number is not None]
        if not numbers or min(numbers) <= 0:
            return "needs forward or both, in seconds above 0"
        if self.precision not in MEASURED_AS:
            return f"precision {self.precision!r} is not one of {', '.join(MEASURED_AS)}"
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            return f"a forward pass takes {numbers[0]:g} s, forward and backward {numbers[1]:g} s"
        return ""


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds of one pass, and the measurement that they come from.

    Attributes:
        seconds: of one pass and image.
        scaled_from: the measured network, if it is another one; else empty.
    """

    seconds: float
    scaled_from: str = ""


@dataclass(frozen=True)
class Throughput:
    """Measured throughput of networks.

    Attributes:
        macs: per network the multiply-adds of one forward pass of one image.
        measured: per network its measurements.
    """

    macs: Mapping[str, float]
    measured: Mapping[str, tuple[Measurement, ...]]
    _estimates: dict[tuple[str, str, str, int | None], Estimate] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @classmethod
    def load(cls, root: Path) -> Throughput:
        """Read ``workflow/throughput.yaml``.

        Raises:
            UserError: a measurement that cannot be right.
        """
        path = root / "workflow" / "throughput.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls.parse(content or {}, str(path))

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str) -> Throughput:
        """Check the content of the file; ``where`` begins the error messages."""
        measured = {}
        for network, entry in content.items():
            rows = tuple(Measurement(**row) for row in entry.get("measured", ()))
            for row in rows:
                if fault := row.fault():
                    raise UserError(
                        f"{where}: {network} on {row.device}: {fault}; remove the entry and run "
                        "python -m purifiers measure again"
                    )
            measured[network] = rows
        return cls({network: entry["macs"] for network, entry in content.items()}, measured)

    def devices(self) -> list[str]:
        """Device kinds with measurements; the one with the most measured networks comes first."""
        kinds = [row.device for rows in self.measured.values() for row in rows]
        return sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))

    def default_device(self, scale_device: str) -> str:
        """Device kind to price for: ``cpu``, else the GPU with the most measured networks.

        Args:
            scale_device: ``device`` of the scale.

        Raises:
            UserError: the scale uses GPUs, and no network is measured on one.
        """
        if scale_device == "cpu":
            return "cpu"
        cards = [kind for kind in self.devices() if kind != "cpu"]
        if not cards:
            raise UserError(
                "workflow/throughput.yaml: no network is measured on a GPU; run "
                "python -m purifiers measure --device cuda on one, or pass --card cpu"
            )
        return cards[0]

    def seconds(self, run: Run, device: str) -> float:
        """Predict the duration of a run.

        A network that was never measured anywhere counts as the median one of the device.

        Args:
            device: device kind.

        Raises:
            UserError: nothing is measured on the device.
        """
        precision, batch = precision_of(run), batch_of(run)
        total = 0.0
        for network, passes in run.cost.items():
            if network in self.macs:
                one_pass = self.estimate(network, device, precision, batch).seconds
            else:
                one_pass = self._median(device)
            total += passes * one_pass
        return total

    def _median(self, device: str) -> float:
        rows = [row for rows in self.measured.values() for row in rows if row.device == device]
        if not rows:
            raise UserError(
                f"workflow/throughput.yaml: no network is measured on {device!r}; run "
                "python -m purifiers measure there"
            )
        return statistics.median(row.seconds for row in rows)

    def estimates(self, run: Run, device: str) -> dict[str, Estimate] | None:
        """Estimate one pass of each network of a run; None if a network is unknown."""
        precision, batch = precision_of(run), batch_of(run)
        if not run.cost.keys() <= self.macs.keys():
            return None
        return {network: self.estimate(network, device, precision, batch) for network in run.cost}

    def estimate(
        self, network: str, device: str, precision: str = "float32", batch: int | None = None
    ) -> Estimate:
        """Estimate one pass of one image.

        A network that is not measured on the device is scaled by its multiply-adds from a measured
        one: of the same component if there is any, with the most similar number of multiply-adds.

        Args:
            network: its key, see :func:`purifiers.plan.cost.network_key`.
            device: device kind.
            precision: of the run.
            batch: images per pass; None: as many as are fastest.

        Raises:
            UserError: nothing is measured on the device.
        """
        key = (network, device, precision, batch)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(*key)
        return self._estimates[key]

    def _estimate(self, network: str, device: str, precision: str, batch: int | None) -> Estimate:
        for candidate in MEASURED_AS[precision]:
            if (seconds := self._measured(network, device, candidate, batch)) is not None:
                return Estimate(seconds)
        references = [
            (self._distance(network, other), rank, other, seconds)
            for rank, candidate in enumerate(MEASURED_AS[precision])
            for other in self.measured
            if (seconds := self._measured(other, device, candidate, batch)) is not None
        ]
        if references:
            # the component first: another one may gain more from a lower precision
            best = min(references, key=lambda row: (row[0][0], row[1], row[0][1]))
            _, _, nearest, seconds = best
            return Estimate(seconds * self.macs[network] / max(self.macs[nearest], 1), nearest)
        devices = ", ".join(self.devices()) or "none"
        raise UserError(
            f"workflow/throughput.yaml: no network is measured on {device!r} (measured: "
            f"{devices}); choose one of these, or run python -m purifiers measure there"
        )

    def _measured(
        self, network: str, device: str, precision: str, batch: int | None
    ) -> float | None:
        rows = [
            row
            for row in self.measured.get(network, ())
            if row.device == device and row.precision == precision
        ]
        return _at_batch(rows, batch).seconds if rows else None

    def _distance(self, network: str, other: str) -> tuple[bool, float]:
        kind = network.partition("(")[0]
        ratio = max(self.macs[network], 1) / max(self.macs[other], 1)
        return other.partition("(")[0] != kind, abs(math.log(ratio))


def _at_batch(rows: Iterable[Measurement], batch: int | None) -> Measurement:
    """The measurement with the most similar batch size; the fastest one if ``batch`` is None."""
    if batch is None:
        return min(rows, key=lambda row: row.seconds)
    return min(rows, key=lambda row: (abs(math.log(batch / (row.batch or batch))), row.seconds))


def precision_of(run: Run) -> str:
    """Precision in which most passes of a run are computed."""
    match run.spec:
        case ClassifierSpec(training=recipe) | SubstituteSpec(training=recipe):
            return str(recipe.parameters.get("precision", "float32"))
        case PurifierSpec(method=recipe):
            parameters = recipe.parameters
            # the steps of the attack are most of a fit that attacks
            of_attack = parameters.get("attack_precision", "float32")
            return str(parameters.get("precision", of_attack))
        case AttackSpec(precision=precision):
            return precision
    return "float32"


def batch_of(run: Run) -> int | None:
    """Images per pass of a training; None for other runs, whose batches are large."""
    match run.spec:
        case ClassifierSpec(training=recipe) | SubstituteSpec(training=recipe):
            return recipe.parameters.get("batch_size")
        case PurifierSpec(method=recipe):
            return recipe.parameters.get("batch_size")
    return None
