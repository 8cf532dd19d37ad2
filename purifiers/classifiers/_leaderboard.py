"""Numbers that RobustBench reports of the networks in its zoo (Croce et al. 2021).

``_leaderboard.csv`` holds them, taken from ``model_info`` of github.com/RobustBench/robustbench at
commit 78fcc9e (March 2025), which the installed package lacks.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from purifiers.core.errors import UserError, did_you_mean

SOURCE = "RobustBench, model_info at commit 78fcc9e"


@dataclass(frozen=True)
class Reported:
    """One line of the leaderboard; accuracies in percent of RobustBench's test images.

    Attributes:
        architecture: the network's.
        eps: radius of the attack as RobustBench writes it; "" for corruptions.
        clean: accuracy on clean images.
        robust: accuracy under AutoAttack, or mean accuracy over corruptions and severities.
        external: a lower robust accuracy by another attack; None: none.
        authors: the robust accuracy that the network's authors report; None: none.
        unreliable: RobustBench's evaluation may overestimate the robustness.
        source: where the numbers come from.
    """

    architecture: str
    eps: str
    clean: float
    robust: float
    external: float | None
    authors: float | None
    unreliable: bool
    source: str = SOURCE

    def __str__(self) -> str:
        attack = f"AutoAttack, eps {self.eps}" if self.eps else "common corruptions"
        return f"RobustBench reports {self.clean:g} % clean, {self.robust:g} % under {attack}"

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and ``sentence`` for tables."""
        return {**asdict(self), "sentence": str(self)}


def reported(entry: str, dataset: str = "cifar10", threat_model: str = "Linf") -> Reported:
    """The leaderboard's line of a zoo entry.

    Args:
        entry: name in the zoo, such as ``Wong2020Fast``.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``Linf``, ``L2`` or ``corruptions``.

    Raises:
        UserError: there is no such entry.
    """
    lines = _lines()
    key = (dataset, threat_model, entry)
    if key not in lines:
        entries = [name for d, t, name in lines if (d, t) == key[:2]]
        raise UserError(
            f"robustbench: the zoo has no entry {entry!r} of {dataset}, {threat_model}"
            f"{did_you_mean(entry, entries)}: choose another entry, zoo_dataset or threat_model"
        )
    return lines[key]


@functools.cache
def _lines() -> dict[tuple[str, str, str], Reported]:
    def number(text: str) -> float | None:
        return float(text) if text else None

    path = Path(__file__).with_name("_leaderboard.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["dataset"], row["threat_model"], row["entry"]): Reported(
                row["architecture"],
                row["eps"],
                float(row["clean"]),
                float(row["robust"]),
                number(row["external"]),
                number(row["authors"]),
                row["unreliable"] == "yes",
            )
            for row in csv.DictReader(file)
        }
