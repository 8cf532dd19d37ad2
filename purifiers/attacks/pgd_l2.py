"""Projected gradient descent in the L2 ball (Madry et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._l2 import direction, project, random_start
from purifiers.attacks._losses import cross_entropy
from purifiers.core.active import active_set
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.numbers import Radius
from purifiers.core.ranges import Count
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits


class PgdL2(Attack):
    """Take steps along the normalised cross-entropy gradient; return the last iterate.

    Each iterate is projected onto the L2 ball and then onto [0, 1], which never increases the
    distance to the image.

    Args:
        radius: radius of the L2 ball around the image, over all its pixels on the [0, 1] scale.
        step_length: L2 length of a step on the same scale.
        steps: number of steps.
        random_start: begin uniformly inside the ball, by (seed, image index); else at the image.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.pgd.Pgd`.

    Defaults: radius .5 from RobustBench for CIFAR-10; 20 steps and the random start as in the
    L-infinity attack; steps of 2.5 * radius / steps reach the boundary from everywhere in the ball
    (the paper's section 5); ``stop`` is our choice.
    """

    traits = AttackTraits(version=1, budget=("steps",), passes="3 * steps", norm="l2")

    def __init__(
        self,
        *,
        radius: Radius = 0.5,
        step_length: Radius = 0.0625,
        steps: Count = 20,
        random_start: bool = True,
        stop: Stop = "never",
    ) -> None:
        self.radius = radius
        self.step_length = step_length
        self.steps = steps
        self.random_start = random_start
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        current = images.clone()
        if self.random_start:
            current = random_start(images, self.radius, seed, indices, tag="pgd_l2")
        result = current.clone()
        active = active_set(images, indices)
        for _ in range(self.steps if len(images) else 0):
            gradient, logits, _ = input_gradient(
                target, current, labels, active.indices, cross_entropy
            )
            if self.stop == "success":
                kept = active.update(target.unbroken(logits, current, labels, active.indices))
                if kept is not None:
                    active.store(result, current)
                    images, labels, current, gradient = active.reduce(
                        kept, images, labels, current, gradient
                    )
                    if not len(active.rows):
                        break
            moved = project(current + self.step_length * direction(gradient), images, self.radius)
            current = active.moved(moved, current)
        active.store(result, current)
        return result
