"""Rounds in which every library attacks once, and the strength of the resulting images."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from purifiers.core.provenance import git_commit, processor
from purifiers.timing import settings
from purifiers.timing.settings import Attack
from purifiers.timing.victims import Victim

FLOOR = "floor"


def clock(device: str) -> Callable[[], float]:
    """Return a clock in seconds: process time on a processor, synchronised wall time on a GPU."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def machine(device: str) -> dict[str, str]:
    """Hardware and software versions of the measurement."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor(),
        "torch": torch.__version__,
        "git": git_commit(),
    }


def has_bfloat16(device: str) -> bool:
    """Whether the processor or the GPU computes in bfloat16 without emulation."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "avx512_bf16" in processor().split()


class Alternated:
    """One round per call: every row once, in reverse order every other time.

    Attributes:
        seconds: row to its time in each round.
    """

    def __init__(self, rows: Mapping[str, Callable[[], Any]], device: str) -> None:
        self.seconds: dict[str, list[float]] = {row: [] for row in rows}
        self._rows, self._clock = rows, clock(device)
        self._turns = itertools.cycle([list(rows), list(reversed(list(rows)))])

    def __call__(self) -> None:
        for row in next(self._turns):
            start = self._clock()
            self._rows[row]()
            self.seconds[row].append(self._clock() - start)


class Rounds:
    """One round per call: the floor, then every row, in reverse order every other time.

    The number of the round is its seed, so that a single lucky random start has no influence.

    Attributes:
        seconds: row to its time in each round.
        adversarial: row to its adversarial examples (n, C, H, W) in each round.
    """

    def __init__(self, runs: dict[str, Callable[[int], Tensor | None]], device: str) -> None:
        self.runs = runs
        self.clock = clock(device)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.adversarial: dict[str, list[Tensor]] = defaultdict(list)

    def __call__(self) -> None:
        names = [name for name in self.runs if name != FLOOR and not self.slow(name)]
        done = len(self.seconds[FLOOR])
        for name in (FLOOR, *(names if done % 2 == 0 else reversed(names))):
            self._run(name, done)

    def slow(self, name: str) -> bool:
        """Whether a row is so slow that it is measured in one round only."""
        times = self.seconds.get(name, [])
        return bool(times) and times[0] > settings.SLOW * self.seconds[FLOOR][0]

    def _run(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # used by ART
        gc.collect()
        start = self.clock()
        result = self.runs[name](seed)
        self.seconds[name].append(self.clock() - start)
        if result is not None:
            self.adversarial[name].append(result.detach())


@dataclass(frozen=True)
class Strength:
    """Strength of a row's adversarial examples against the victim.

    Attributes:
        kept: images (rounds, n) that are still classified correctly.
        median: median distance over the images that the victim classifies correctly, mean over the
            rounds. L2: an unbroken image counts as infinitely far. L-infinity: broken images only;
            NaN if there are none.
        black: number of images that were returned entirely black in the first round. They count as
            unbroken, because a black image is not an attack.
    """

    kept: Tensor
    median: float
    black: int

    @property
    def left(self) -> float:
        """Number of images that are still classified correctly, mean over the rounds."""
        return float(self.kept.float().mean(dim=0).sum())


def strength(victim: Victim, attack: Attack, rounds: Sequence[Tensor]) -> Strength:
    """Strength of the adversarial examples of one row, evaluated in plain float32.

    Args:
        rounds: adversarial examples (n, C, H, W) of each round.

    Raises:
        RuntimeError: they are not finite or leave [0, 1] or the eps ball.
    """
    correct = victim.kept(victim.images)
    kept, medians, black = [], [], 0
    for adversarial in rounds:
        shift = (adversarial - victim.images).flatten(1)
        inside = bool(torch.isfinite(adversarial).all())
        inside = inside and 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
        if not inside or (attack.norm == "linf" and shift.abs().max() > victim.eps + 1e-6):
            raise RuntimeError("the images are not finite or lie outside [0, 1] or the eps ball")
        dark = (adversarial.flatten(1).amax(1) == 0) & (victim.images.flatten(1).amax(1) > 0)
        kept.append(victim.kept(adversarial) | dark)
        if len(kept) == 1:
            black = int(dark.sum())
        if attack.norm == "l2":
            length, measured = shift.norm(dim=1).masked_fill(kept[-1], math.inf), correct
        else:
            length, measured = shift.abs().amax(1), correct & ~kept[-1]
        medians.append(float(length[measured].median()))
    return Strength(torch.stack(kept), statistics.fmean(medians), black)


def strongest(attack: Attack, rows: dict[str, Strength]) -> str:
    """Row with the fewest unbroken images, or for L2 with the smallest median distance."""
    if attack.norm == "l2":
        return min(rows, key=lambda name: (rows[name].median, rows[name].left))
    return min(rows, key=lambda name: rows[name].left)


def record(
    rounds: Rounds, strengths: dict[str, Strength], best: str | None, versions: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows in the form in which they are stored."""
    rows = []
    for name, seconds in rounds.seconds.items():
        row: dict[str, Any] = {"library": name, "seconds": seconds}
        row["version"] = versions.get(name.partition(",")[0], "")
        if name in strengths:
            strength_of_row = strengths[name]
            row["kept"] = strength_of_row.left
            row["norm_median"] = (
                strength_of_row.median if math.isfinite(strength_of_row.median) else None
            )
            row["black"] = strength_of_row.black
            if best is not None:
                row["differ"] = int((strength_of_row.kept[0] != strengths[best].kept[0]).sum())
        rows.append(row)
    return rows
