"""Rounds in which every library attacks once, and what their results are worth."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import settings
import torch
from settings import Attack
from torch import Tensor
from victims import Victim

from purifiers.core.provenance import git_commit, processor

FLOOR = "floor"


def clock(device: str) -> Callable[[], float]:
    """Seconds: a processor's own time, whatever else the machine does; a GPU's by the wall."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def machine(device: str) -> dict[str, str]:
    """What was timed on, and with what code."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor(),
        "torch": torch.__version__,
        "git": git_commit(),
    }


def has_bfloat16(device: str) -> bool:
    """Whether the processor or the GPU computes in bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "avx512_bf16" in processor().split()


class Rounds:
    """Calling it runs one round: the floor, then every row in turn, backwards every other time.

    A round's number is its seed, so that one lucky random start decides nothing.

    Attributes:
        seconds: row -> its time in each round.
        found: row -> its adversarial images (n, C, H, W) in each round.
    """

    def __init__(self, runs: dict[str, Callable[[int], Tensor | None]], device: str) -> None:
        self.runs = runs
        self.clock = clock(device)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.found: dict[str, list[Tensor]] = defaultdict(list)

    def __call__(self) -> None:
        names = [name for name in self.runs if name != FLOOR and not self.slow(name)]
        done = len(self.seconds[FLOOR])
        for name in (FLOOR, *(names if done % 2 == 0 else reversed(names))):
            self._run(name, done)

    def slow(self, name: str) -> bool:
        """Whether one round is enough of this row."""
        spent = self.seconds.get(name)
        return bool(spent) and spent[0] > settings.SLOW * self.seconds[FLOOR][0]

    def _run(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # ART's
        gc.collect()
        start = self.clock()
        result = self.runs[name](seed)
        self.seconds[name].append(self.clock() - start)
        if result is not None:
            self.found[name].append(result.detach())


@dataclass(frozen=True)
class Strength:
    """What a row's adversarial images do to the victim.

    Attributes:
        kept: which images (rounds, n) keep their label.
        median: over the images that the victim classifies correctly, mean over the rounds. L2: an
            image that is kept counts as infinitely far. L-infinity: broken images only; NaN where
            there is none.
        black: images that came back entirely black in the first round. They are kept: that is no
            attack.
    """

    kept: Tensor
    median: float
    black: int

    @property
    def left(self) -> float:
        """Images that keep their label, mean over the rounds."""
        return float(self.kept.float().mean(dim=0).sum())


def strength(victim: Victim, attack: Attack, found: Sequence[Tensor]) -> Strength:
    """Judge the images of one row, in plain float32.

    Args:
        found: adversarial images (n, C, H, W) of each round.

    Raises:
        RuntimeError: they are not finite or leave [0, 1] or the eps ball.
    """
    counted = victim.kept(victim.images)
    kept, medians, black = [], [], 0
    for adversarial in found:
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
            length, chosen = shift.norm(dim=1).masked_fill(kept[-1], math.inf), counted
        else:
            length, chosen = shift.abs().amax(1), counted & ~kept[-1]
        medians.append(float(length[chosen].median()))
    return Strength(torch.stack(kept), statistics.fmean(medians), black)


def strongest(attack: Attack, rows: dict[str, Strength]) -> str:
    """The row with the fewest images left, or for L2 with the smallest median."""
    if attack.norm == "l2":
        return min(rows, key=lambda name: (rows[name].median, rows[name].left))
    return min(rows, key=lambda name: rows[name].left)


def record(
    rounds: Rounds, strengths: dict[str, Strength], best: str | None, versions: dict[str, str]
) -> list[dict[str, Any]]:
    """The rows as they are stored."""
    made = []
    for name, seconds in rounds.seconds.items():
        row: dict[str, Any] = {"library": name, "seconds": seconds}
        row["version"] = versions.get(name.partition(",")[0], "")
        if name in strengths:
            found = strengths[name]
            row["kept"] = found.left
            row["norm_median"] = found.median if math.isfinite(found.median) else None
            row["black"] = found.black
            if best is not None:
                row["differ"] = int((found.kept[0] != strengths[best].kept[0]).sum())
        made.append(row)
    return made
