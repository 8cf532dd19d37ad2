"""Measure the passes of each planned network, for the price of a plan."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.artifacts import write_text
from purifiers.core.component import Classifier, Method, build
from purifiers.core.errors import UserError
from purifiers.core.memory_layout import lay_out
from purifiers.core.precision import computing
from purifiers.plan.throughput import Measurement

HEAD = """\
# Measured passes of networks: multiply-adds of one forward pass of one image (macs), and seconds
# per image by device kind, precision and batch size, of a forward pass (forward) and of a forward
# and backward pass (both). Of a processor: its own time on one thread. Written by
# `python -m purifiers measure`; a row with a source was entered by hand.
"""
NETWORK_KEY = re.compile(r"(\w+)\((.*)\)@([\dx]+)")
"""A key of :func:`purifiers.plan.cost.network_key`."""
ROUNDS = 3
WARM_UPS = 3
"""Passes before the first round: libraries choose their algorithms in the first ones."""
TRIES = 3
"""Measurements of a batch size before an implausible result is refused."""
BATCHES = {"cpu": (128,), "cuda": (32, 128, 512)}
"""Batch sizes that are tried; our choice."""
PIXELS = 2**18
"""Values in a batch on a CPU, at most; our choice."""
PASS_MACS = 2 * 10**10
"""Multiply-adds of a pass on a CPU, at most; our choice: about a second."""
MINIMUM_SECONDS = 0.3  # per round, far above the resolution of the clock


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        module: owner of the parameters, in evaluation mode, on the device.
        forward_pass: images to an output.
        shape: (C, H, W) of the images.
    """

    module: nn.Module
    forward_pass: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


def measure_networks(
    networks: Iterable[str],
    path: Path,
    device: str = "cpu",
    precisions: Sequence[str] = ("float32",),
) -> None:
    """Measure the networks that ``path`` does not list for the device, and add them to it.

    Args:
        networks: keys of :func:`purifiers.plan.cost.network_key`.
        path: YAML file of the measurements.
        device: ``cpu`` or ``cuda``.
        precisions: see :func:`purifiers.core.precision.computing`.
    """
    entries: dict[str, dict[str, Any]] = {}
    if path.exists():
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    torch.set_num_threads(1)
    for key in sorted(set(networks)):
        rows = entries.get(key, {}).get("measured", [])
        measured = {(row["device"], row["precision"]) for row in rows if "source" not in row}
        missing = [p for p in precisions if (device_kind(device), p) not in measured]
        if not missing:
            continue
        subject = subject_of(key, device)
        for precision in missing:
            rows = [*rows, *map(stored, measured_passes(subject, device, precision))]
        entries[key] = {"macs": multiply_adds(subject, device), "measured": rows}
        write_text(path, HEAD + file_text(entries))
        print(f"{key}: {', '.join(missing)} measured on {device_kind(device)}", flush=True)


def file_text(entries: dict[str, dict[str, Any]]) -> str:
    """YAML with one line per measurement."""
    return yaml.safe_dump(entries, sort_keys=True, default_flow_style=None, width=1000)


def stored(measurement: Measurement) -> dict[str, Any]:
    """A measurement as it is written to the file."""
    return {key: value for key, value in asdict(measurement).items() if value not in (None, "")}


def device_kind(device: str) -> str:
    """Kind of a device in the file: ``cpu``, or the card's name such as ``h200``."""
    if device == "cpu":
        return "cpu"
    words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower())
    return "-".join(word for word in words if word != "nvidia")


def subject_of(key: str, device: str) -> Subject:
    """Build the network of a key such as ``wide_resnet(depth=10)@1x28x28``.

    Raises:
        ValueError: not a network key.
    """
    match = NETWORK_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"not a network key: {key}")
    parameters = yaml.safe_load("{" + match[2].replace("=", ": ") + "}") or {}
    shape = tuple(int(size) for size in match[3].split("x"))
    if registry.exists("method", match[1]):
        method: Method = build(registry.load("method", match[1]), **parameters)
        method.bind(None, shape)
        method.eval().to(device)
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Subject(method, method.own_pass, shape)
    classifier: Classifier = build(registry.load("classifier", match[1]), shape, 10, **parameters)
    lay_out(classifier.eval().to(device), shape)
    return Subject(classifier, classifier, shape)


def measured_passes(
    subject: Subject, device: str, precision: str, batches: Sequence[int] = ()
) -> list[Measurement]:
    """Measure a network at several batch sizes.

    A batch size for which the memory is too small ends the list.

    Args:
        batches: increasing numbers of images; by default ``BATCHES``, fewer for large images on a
            CPU.

    Raises:
        UserError: a forward pass took longer than forward and backward in every try.
    """
    sizes = batches or BATCHES[device]
    if device == "cpu":
        largest = max(2, PIXELS // math.prod(subject.shape))
        largest = min(largest, max(1, PASS_MACS // max(multiply_adds(subject, device), 1)))
        sizes = sorted({min(size, largest) for size in sizes})
    rows: list[Measurement] = []
    for batch in sizes:
        try:
            rows.append(_at_batch(subject, device, precision, batch))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if device == "cpu" and (rows[-1].forward or 0.0) * batch > MINIMUM_SECONDS:
            break  # larger batches would gain nothing
    return rows


def _at_batch(subject: Subject, device: str, precision: str, batch: int) -> Measurement:
    row = Measurement(device_kind(device), precision)
    for _ in range(TRIES):
        with computing(precision, device):
            row = Measurement(
                device_kind(device),
                precision,
                forward=_seconds(subject, device, batch, backward=False),
                both=_seconds(subject, device, batch, backward=True),
                batch=batch,
            )
        if not row.fault():
            return row
    raise UserError(
        f"measure: {type(subject.module).__name__}, {precision}, {batch} images: {row.fault()}; "
        "end other programs on the device and measure again"
    )


def _seconds(subject: Subject, device: str, batch: int, backward: bool) -> float:
    """Median seconds per image over rounds: process time on a CPU, else wall-clock time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    images = torch.rand(batch, *subject.shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    parameters = [p for p in subject.module.parameters() if p.requires_grad]

    def one_pass() -> None:
        with torch.set_grad_enabled(backward):
            output = subject.forward_pass(images.clone())
            if backward:
                torch.autograd.grad(output.float().sum(), parameters, allow_unused=True)

    def seconds_of(count: int) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(count):
            one_pass()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    first = seconds_of(1)
    if first < MINIMUM_SECONDS:
        seconds_of(WARM_UPS)
        first = seconds_of(1)
    # passes follow each other without waiting, as in an attack or a training
    count = max(1, math.ceil(MINIMUM_SECONDS / max(first, 1e-6)))
    rounds = [seconds_of(count) / count / batch for _ in range(ROUNDS)]
    return float(f"{statistics.median(rounds):.3g}")


def multiply_adds(subject: Subject, device: str) -> int:
    """Multiply-adds of convolutions and matrix products for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.forward_pass(torch.zeros(1, *subject.shape, device=device))
    return counter.get_total_flops() // 2
