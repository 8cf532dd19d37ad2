"""Adversarial training in the L2 norm (Laidlaw et al. 2021): cross entropy on PGD examples."""

from __future__ import annotations

from typing import Any

from purifiers.attacks.pgd_l2 import PgdL2
from purifiers.core.numbers import Radius
from purifiers.core.ranges import Count
from purifiers.training._perceptual_advex import PerceptualAdvex


class MadryL2(PerceptualAdvex):
    """Train on PGD examples in an L2 ball, from a random start, by steps of radius / sqrt(steps).

    Args:
        radius: of the ball, over all pixels on the [0, 1] scale; 1 for CIFAR-10 in
            `cassidylaidlaw/perceptual-advex`.
        steps: number of steps; 10 in its trainings.
        common: see :class:`purifiers.training._perceptual_advex.PerceptualAdvex`.
    """

    traits = PerceptualAdvex.traits.replace(
        version=1,
        passes="3 * epochs * (steps + 1)",
    )

    def __init__(self, *, radius: Radius = 1.0, steps: Count = 10, **common: Any) -> None:
        super().__init__(**common)
        self.attack = PgdL2(radius=radius, steps=steps, step_length=radius / steps**0.5)
