"""One attack of the suite, its floor and the other libraries, on the same images."""

from __future__ import annotations

from typing import Any

from purifiers.core.provenance import version_of
from purifiers.report.attack_timing import SUITE
from purifiers.timing import floor, peers, settings, suite
from purifiers.timing.rounds import (
    Rounds,
    Strength,
    machine,
    record,
    strength,
    strongest,
)
from purifiers.timing.settings import Plan
from purifiers.timing.victims import Victim


class Comparison:
    """Rows of an attack on a victim. Call :attr:`rounds` once per round, then :meth:`judge`.

    Args:
        key: of :data:`purifiers.timing.settings.ATTACKS`.
        plan: which rows to measure.

    Attributes:
        victim: with the attacked images; behind the random defence for EOT.
        rounds: the measured times and images.
        ours, others: names of the rows of the suite and of other libraries.
        strengths: row to its strength; filled by :meth:`judge`.
    """

    def __init__(self, victim: Victim, key: str, plan: Plan, device: str) -> None:
        self.attack, self.device = settings.ATTACKS[key], device
        self.victim = victim.first(max(1, len(victim.images) // self.attack.share))
        if self.attack.method == "pgd_eot":
            self.victim = self.victim.defended()
        without = [library for library, attack_key in plan.without if attack_key == key]
        others = peers.rows(self.victim, self.attack, key in plan.as_is, without)
        ours = suite.rows(self.victim, self.attack)
        self.ours, self.others = list(ours), list(others)
        floor_row = floor.rows(self.victim, self.attack)
        self.rounds = Rounds({**floor_row, **others, **ours}, device)
        self.strengths: dict[str, Strength] = {}

    def judge(self) -> dict[str, Any]:
        """Evaluate the images of all rounds; return the measurement as it is stored.

        Raises:
            RuntimeError: a row's images are not finite or leave [0, 1] or the eps ball.
        """
        self.strengths = {
            row: strength(self.victim, self.attack, images)
            for row, images in self.rounds.adversarial.items()
        }
        versions = peers.versions() | {SUITE: version_of("purifybench")}
        return {
            "attack": self.attack.title,
            "norm": self.attack.norm,
            "victim": self.victim.name,
            **machine(self.device),
            "n_images": len(self.victim.images),
            "eps": self.victim.eps,
            "data": self.victim.data,
            "missing": peers.missing(),
            "rows": record(self.rounds, self.strengths, self._best, versions),
        }

    @property
    def _best(self) -> str | None:
        rivals = {row: self.strengths[row] for row in self.others}
        return strongest(self.attack, rivals) if rivals else None

    def complaints(self) -> list[str]:
        """Rows of the suite that are weaker than the strongest other library."""
        if self._best is None:
            return []
        found, best = [], self.strengths[self._best]
        for row in self.ours:
            extra = self.strengths[row].left - best.left
            if extra > max(1, len(self.victim.images) // 256):
                found.append(f"{row} leaves {extra:.1f} images more unbroken than {self._best}")
            ratio = self.strengths[row].median / best.median
            if self.attack.norm == "l2" and not ratio <= 1.01:
                found.append(f"{row} needs {ratio:.4f} times the distance of {self._best}")
        return found
