"""Measure the cost of one forward pass of each planned network, for the price of a plan."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from purifiers.core import registry
from purifiers.core.artifacts import write_text
from purifiers.core.component import Classifier, Method, build, frozen
from purifiers.core.memory_layout import lay_out
from purifiers.core.precision import computing

HEAD = """\
# Measured cost of one forward pass of one image: seconds on the device (of a processor: its
# own time on one thread), and multiply-adds. Written by `python -m purifiers measure`.
"""
ROUNDS = 3
Pass = Callable[[Tensor], Tensor]

MINIMUM_SECONDS = 0.3  # per round, far above the resolution of the clock


def measure_networks(networks: Iterable[str], path: Path, device: str = "cpu") -> None:
    """Measure the networks that ``path`` does not list for ``device``, and add them to it.

    Args:
        networks: keys of :func:`purifiers.plan.cost.network_key`.
        path: YAML file of the measurements.
    """
    measurements: dict[str, dict[str, Any]] = {}
    if path.exists():
        measurements = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    torch.set_num_threads(1)
    for key in sorted(set(networks)):
        if device in measurements.get(key, {}):
            continue
        network, shape = _parse(key, device)
        with computing("float32", device):
            seconds = float(f"{_seconds(network, shape, device):.3g}")
        measurements.setdefault(key, {})["macs"] = _multiply_adds(network, shape, device)
        measurements[key][device] = seconds
        write_text(path, HEAD + yaml.safe_dump(measurements, sort_keys=True))
        print(f"{key}: {seconds:g} s per pass on {device}", flush=True)


def _parse(key: str, device: str) -> tuple[Pass, tuple[int, ...]]:
    """Forward pass and image shape of a key such as ``wide_resnet(depth=10)@1x28x28``."""
    match = re.fullmatch(r"(\w+)\((.*)\)@([\dx]+)", key)
    if match is None:
        raise ValueError(f"not a network key: {key}")
    parameters = yaml.safe_load("{" + match[2].replace("=", ": ") + "}") or {}
    shape = tuple(int(size) for size in match[3].split("x"))
    if registry.exists("method", match[1]):
        method: Method = build(registry.load("method", match[1]), **parameters)
        method.bind(None, shape)
        frozen(method).to(device)
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return method.own_pass, shape
    classifier: Classifier = build(registry.load("classifier", match[1]), shape, 10, **parameters)
    lay_out(frozen(classifier).to(device), shape)
    return classifier, shape


def _seconds(network: Pass, shape: tuple[int, ...], device: str) -> float:
    """Median seconds per image over rounds: process time on a CPU, else wall-clock time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    largest = max(2, min(128, 2**18 // math.prod(shape)))

    def seconds_of(batch: int) -> float:
        images = torch.rand(batch, *shape, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        start = clock()
        with torch.no_grad():
            network(images)
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    # a network that is so slow for two images gains nothing from larger batches
    batch = 2 if seconds_of(2) > MINIMUM_SECONDS else largest
    seconds_of(batch)
    rounds = []
    for _ in range(ROUNDS):
        count, spent = 0, 0.0
        while spent < MINIMUM_SECONDS:
            spent += seconds_of(batch)
            count += batch
        rounds.append(spent / count)
    return statistics.median(rounds)


def _multiply_adds(network: Pass, shape: tuple[int, ...], device: str) -> int:
    """Multiply-adds of convolutions and matrix products for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape, device=device))
    return counter.get_total_flops() // 2
