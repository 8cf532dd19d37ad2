"""AutoAttack, L-infinity: the parameter-free ensemble (Croce & Hein 2020), from its own package."""

from __future__ import annotations

from typing import Any

from purifiers.attacks._autoattack import Ensemble
from purifiers.core.numbers import Length


class Autoattack(Ensemble):
    """APGD-CE, APGD-T, FAB-T and Square (standard), or APGD-CE and APGD-DLR with EOT (rand).

    An image that no member breaks is returned unchanged, as is one that was misclassified before.
    The package draws its random numbers for a whole batch at once, so an image's result depends on
    its batch mates (``batch_dependent``). Every query of a random target gets fresh noise.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        version: ``"standard"``, or ``"rand"`` for random defences: every gradient is the mean over
            the target's ``eot_samples`` draws, or over 20 if that is 1.
        apgd_steps: iterations of each APGD run.
        fab_steps: iterations of each FAB run.
        targets: target classes of APGD-T and FAB-T, at most the number of classes minus one.
        square_queries: queries of the Square attack.
        lucky_draws: attack random defences too, as `torchattacks` does in `glin2022/atop`. An image
            that a single draw loses counts as broken, and is returned without a perturbation.

    Defaults: those of the paper and ``fra31/auto-attack`` (100, 100, 9, 5000; 20 draws); eps 8/255
    as in its CIFAR-10 tables. Smaller values are not AutoAttack and must be reported as a reduced
    budget.
    """

    traits = Ensemble.traits.replace(version=1)

    def __init__(self, *, eps: Length = "8/255", **common: Any) -> None:
        self.eps = eps
        super().__init__("autoattack", self.eps, **common)
