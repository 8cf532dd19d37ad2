"""Approximate input: PGD that continues from the purified image (Yang et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.target import Target, contribution, input_gradient
from purifiers.core.traits import AttackTraits


class ApproximateInput(Attack):
    """x <- project(p + step_size * sign(gradient at p)), p the purified x; returns the last x.

    This is ME-Net's attack as Yoon et al. 2021 (appendix D.1 of the supplement) describe it. The
    classifier's cross-entropy gradient is taken at the purified image and added to it. The sum is
    clipped to the ball around the original image and to [0, 1]. There is no random start. The
    purifier is run but never differentiated, so a cell's ``gradient`` has no effect. Without a
    purifier this is PGD.

    With several draws (EOT), each draw is purified and differentiated separately. p is then the
    mean of the purified images, and the gradient the mean of the gradients, of their signs or of
    the displacements (:func:`purifiers.core.target.contribution`). This is our choice; the papers
    attack single draws.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps, each with one purification per draw.

    Defaults: 40 steps of 2/255 in a ball of 8/255, which Yoon et al. use for BPDA; they give no
    values for this attack.
    """

    traits = AttackTraits(version=1, budget=("steps",), passes="3 * steps")

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "2/255",
        steps: Count = 40,
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = steps

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        classifier, draws = target.bare(), target.eot_samples
        lower, upper = (images - self.eps).clamp_(min=0.0), (images + self.eps).clamp_(max=1.0)
        current = images.clone()
        for _ in range(self.steps if len(images) else 0):
            base, direction = torch.zeros_like(images), torch.zeros_like(images)
            for _ in range(draws):
                with torch.no_grad():
                    purified = target.purify(current, indices)
                gradient, _, _ = input_gradient(
                    classifier, purified, labels, indices, cross_entropy
                )
                base += purified / draws
                direction += contribution(gradient, purified, target.eot_combine, self.step_size)
            current = base.add_(direction.sign(), alpha=self.step_size)
            torch.clamp(current, lower, upper, out=current)
        return current
