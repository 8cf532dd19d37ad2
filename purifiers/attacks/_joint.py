"""Shared base of the joint attacks: a half step against the classifier, a half for the purifier."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.target import Target, input_gradient


class Joint(Attack):
    """x <- project(x + step_size * (sign g + sign r) / 2), from the image on; returns the last x.

    g is the cross-entropy gradient of the threat model. r is the direction in which the purifier
    would move the image (:meth:`restoring`). Pixels on which the two signs disagree stay unchanged.

    With ``eot_combine="displacement"`` g is the sum of the draws' clipped steps, as in
    `jmyoon1/adp`. Upstream's steps are eps / 4 long, which equals its ``step_size`` at 8/255.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps.

    Defaults: 40 steps of 2/255 in a ball of 8/255, no random start (`jmyoon1/adp`).
    """

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

    def restoring(self, target: Target, images: Tensor, indices: Tensor) -> Tensor:
        """Direction in which the purifier would move the images (n, C, H, W); only signs count."""
        raise TypeError(f"{type(self).__name__} does not implement restoring")

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        lower, upper = (images - self.eps).clamp_(min=0.0), (images + self.eps).clamp_(max=1.0)
        current = images.clone()
        for _ in range(self.steps if len(images) else 0):
            gradient, _, _ = input_gradient(
                target, current, labels, indices, cross_entropy, self.step_size
            )
            with torch.no_grad():
                restoring = self.restoring(target, current, indices)
            signs = gradient.sign() + restoring.sign()
            current = current + self.step_size / 2 * signs
            torch.clamp(current, lower, upper, out=current)
        return current
