"""Projected gradient descent in the L-infinity ball (Madry et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._linf import (
    ascend,
    check_count,
    check_stop,
    random_start,
)
from purifiers.core.component import Attack
from purifiers.core.numbers import fraction
from purifiers.core.target import Target

VERSION = 1
BUDGET = ("steps",)
PASSES = "3 * steps"


class Pgd(Attack):
    """Signed cross-entropy steps with projection (section 2.1); returns the last iterate.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: length of a step on the same scale.
        steps: number of steps.
        random_start: begin uniformly inside the ball, by (seed, image index); else at the image.
        stop: ``"never"`` runs all steps on all images; ``"success"`` freezes an image once it is
            misclassified: cheaper, equally strong against the attacked model itself, but too
            weak for images that a purifier will see.

    Defaults: eps, step_size, steps and random start of the paper's CIFAR-10 evaluation (8/255,
    2/255, 20); ``stop`` is our choice.
    """

    def __init__(
        self,
        *,
        eps: float | str = "8/255",
        step_size: float | str = "2/255",
        steps: int = 20,
        random_start: bool = True,
        stop: str = "never",
    ) -> None:
        check_count("pgd", steps=steps)
        self.eps = fraction(eps)
        self.step_size = fraction(step_size)
        self.steps = steps
        self.random_start = random_start
        self.stop = check_stop("pgd", stop)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        start = images
        if self.random_start:
            start = random_start(images, self.eps, seed, indices, tag="pgd")
        return ascend(
            target,
            images,
            labels,
            indices,
            start=start,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            stop=self.stop,
        )
