"""Basic iterative method: signed steps in the L-infinity ball (Kurakin et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._linf import ascend
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class Bim(Attack):
    """Take signed cross-entropy steps from the image itself, clipped after each; return the last.

    Section 2.2 of "Adversarial examples in the physical world". Equal to
    :class:`purifiers.attacks.pgd.Pgd` without its random start.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.pgd.Pgd`.

    Defaults: one grey level per step and min(eps + 4, 1.25 eps) steps, for eps in grey levels, from
    the paper; eps 8/255 from Madry et al. 2018 (CIFAR-10); ``stop`` is our choice.
    """

    traits = AttackTraits(version=1, budget=("steps",), passes="3 * steps")

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "1/255",
        steps: Count = 10,
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
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
        )
