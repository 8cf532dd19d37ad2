"""Perceptual adversarial training, self-bounded (Laidlaw et al. 2021): Fast-LPA's examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from purifiers.attacks.fast_lpa import FastLpa
from purifiers.core.ranges import Count, Positive
from purifiers.training._perceptual_advex import PerceptualAdvex


class PatSelf(PerceptualAdvex):
    """Train on examples at a bounded distance in the trained network's own layers.

    As `cassidylaidlaw/perceptual-advex` trains on CIFAR-10: Fast-LPA without projection, batches of
    50, and images that are misclassified anyway stay clean (the README's command).

    Args:
        bound: largest perceptual distance; .5 upstream.
        steps: of the attack; 10 upstream.
        taps: layers of the distance, see :class:`purifiers.attacks.fast_lpa.FastLpa`.
        common: see :class:`purifiers.training._perceptual_advex.PerceptualAdvex`.
    """

    traits = PerceptualAdvex.traits.replace(
        version=1,
        passes="epochs * (4 * steps + 5)",
    )

    def __init__(
        self,
        *,
        bound: Positive = 0.5,
        steps: Count = 10,
        taps: Sequence[str] = (),
        only_correct: bool = True,
        batch_size: Count = 50,
        **common: Any,
    ) -> None:
        super().__init__(only_correct=only_correct, batch_size=batch_size, **common)
        self.attack = FastLpa(bound=bound, steps=steps, taps=taps, projected=False)
