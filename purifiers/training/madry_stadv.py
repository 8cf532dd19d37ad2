"""Adversarial training against spatial examples (Laidlaw et al. 2021): cross entropy on StAdv's."""

from __future__ import annotations

from typing import Any

from purifiers.attacks.stadv import Stadv
from purifiers.core.ranges import Count, Positive
from purifiers.training._perceptual_advex import PerceptualAdvex


class MadryStadv(PerceptualAdvex):
    """Train on the last iterates of :class:`purifiers.attacks.stadv.Stadv`.

    Args:
        bound: largest flow, a fraction of half the image's side; .05 in
            `cassidylaidlaw/perceptual-advex`. The roughness's weight is .0025 / bound, as there.
        steps: number of steps of Adam; 10 in its trainings.
        common: see :class:`purifiers.training._perceptual_advex.PerceptualAdvex`.
    """

    traits = PerceptualAdvex.traits.replace(
        version=1,
        passes="epochs * (3 * steps + 4)",
    )

    def __init__(self, *, bound: Positive = 0.05, steps: Count = 10, **common: Any) -> None:
        super().__init__(**common)
        self.attack = Stadv(bound=bound, steps=steps, smoothness=0.0025 / bound, returned="last")
