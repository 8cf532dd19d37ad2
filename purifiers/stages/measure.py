"""Measure what one forward pass of each planned network costs, for the price of a plan."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.artifacts import write_text
from purifiers.core.component import build, frozen

HEAD = """\
# Measured cost of one forward pass of one image: seconds on the device (of a processor: its
# own time on one thread), and multiply-adds. Written by `python -m purifiers measure`.
"""
ROUNDS = 3
MINIMUM_SECONDS = 0.3  # per round, so that the clock's grain does not matter


def measure_networks(networks: Iterable[str], path: Path, device: str = "cpu") -> None:
    """Time every network that ``path`` does not have for ``device`` yet, and write ``path``.

    Args:
        networks: keys as :func:`purifiers.plan.trained.network_key` makes them.
    """
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        known = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    torch.set_num_threads(1)
    for key in sorted(set(networks)):
        if device in known.get(key, {}):
            continue
        network, shape = _parse(key)
        network = frozen(network).to(device)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        seconds = float(f"{_seconds(network, shape, device):.3g}")
        known.setdefault(key, {})["macs"] = _multiply_adds(network, shape, device)
        known[key][device] = seconds
        print(f"{key}: {seconds:g} s per pass on {device}", flush=True)
    write_text(path, HEAD + yaml.safe_dump(known, sort_keys=True))


def _parse(key: str) -> tuple[nn.Module, tuple[int, ...]]:
    """``wide_resnet(depth=10,widen_factor=1)@1x28x28`` to the network and the image shape."""
    match = re.fullmatch(r"(\w+)\((.*)\)@([\dx]+)", key)
    if match is None:
        raise ValueError(f"not a network key: {key}")
    parameters = yaml.safe_load("{" + match[2].replace("=", ": ") + "}") or {}
    shape = tuple(int(size) for size in match[3].split("x"))
    return build(registry.load("classifier", match[1]), shape, 10, **parameters), shape


def _seconds(network: nn.Module, shape: tuple[int, ...], device: str) -> float:
    """Median over rounds, per image; on a processor its own time, whatever else it is doing."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    batch = max(2, min(128, 2**18 // math.prod(shape)))
    images = torch.rand(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
    rounds = []
    for warm_up in (True, *[False] * ROUNDS):
        count, start = 0, clock()
        while True:
            with torch.no_grad():
                network(images)
            if device != "cpu":
                torch.cuda.synchronize()
            count += batch
            spent = clock() - start
            if warm_up or spent > MINIMUM_SECONDS:
                break
        if not warm_up:
            rounds.append(spent / count)
    return statistics.median(rounds)


def _multiply_adds(network: nn.Module, shape: tuple[int, ...], device: str) -> int:
    """Multiply-adds of convolutions and linear layers for one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_output = module.weight[0].numel()
            total += output[0].numel() * per_output
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, *shape, device=device))
    for handle in handles:
        handle.remove()
    return total
