"""Momentum iterative method in the L-infinity ball (Dong et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._linf import ascend
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, NonNegative
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class Mim(Attack):
    """Take signed steps along a momentum of L1-normalised gradients (equations 6 and 7).

    Starts at the image itself. The paper normalises before the momentum; taking the sign first, as
    some libraries do, is another attack.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps.
        decay: momentum factor, the paper's mu.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.pgd.Pgd`.

    Defaults: eps 16/255, 10 steps, decay 1 and step eps / steps from the paper (section 4.1).
    """

    traits = AttackTraits(version=1, budget=("steps",), passes="3 * steps")

    def __init__(
        self,
        *,
        eps: Length = "16/255",
        step_size: Length = "1.6/255",
        steps: Count = 10,
        decay: NonNegative = 1.0,
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.decay = decay
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        return ascend(
            target,
            images,
            labels,
            indices,
            start=images,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            stop=self.stop,
            decay=self.decay,
        )
