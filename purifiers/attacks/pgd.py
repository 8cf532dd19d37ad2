"""Projected gradient descent in the L-infinity ball (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._linf import (
    ascend,
    check_count,
    check_labels,
    check_stop,
    followed,
    random_start,
)
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.target import Target, finite
from purifiers.core.traits import AttackTraits


class Pgd(Attack):
    """Signed cross-entropy steps with projection (section 2.1); returns the last iterate.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: length of a step on the same scale.
        steps: number of steps.
        random_start: begin uniformly inside the ball, by (seed, image index); else at the image.
        restarts: runs from random starts of their own, each on the images that the attacked model
            still has right after the last.
        attack_labels: ``"true"``, or ``"predicted"``: away from what the attacked model says of the
            clean image, as a library does that is given no label; weaker where the model errs.
        stop: ``"never"`` runs all steps on all images; ``"success"`` freezes an image once it is
            misclassified: cheaper, equally strong against the attacked model itself, but too
            weak for images that a purifier will see.

    Defaults: eps, step_size, steps and random start of the paper's CIFAR-10 evaluation (8/255,
    2/255, 20); ``stop`` is our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "restarts"),
        passes="(3 * steps + 1) * restarts - 1",  # at most: broken images get no further restart
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "2/255",
        steps: int = 20,
        random_start: bool = True,
        restarts: int = 1,
        attack_labels: str = "true",
        stop: str = "never",
    ) -> None:
        check_count("pgd", steps=steps, restarts=restarts)
        if restarts > 1 and not random_start:
            raise UserError(f"pgd: {restarts} restarts would all be the same without random_start")
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.random_start = random_start
        self.restarts = restarts
        self.attack_labels = check_labels("pgd", attack_labels)
        self.stop = check_stop("pgd", stop)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        labels = followed(target, images, labels, indices, self.attack_labels)
        found = self._run(target, images, labels, seed, indices, run=0)
        rows = torch.arange(len(images), device=images.device)
        for run in range(1, self.restarts):
            where = indices[rows.to(indices.device)]
            with torch.no_grad():
                logits = finite(target(found[rows], where))
            rows = rows[target.unbroken(logits, found[rows], labels[rows], where)]
            if not len(rows):
                break
            where = indices[rows.to(indices.device)]
            found[rows] = self._run(target, images[rows], labels[rows], seed, where, run)
        return found

    def _run(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor, run: int
    ) -> Tensor:
        start = images
        if self.random_start:
            tag = f"pgd {run}" if run else "pgd"
            start = random_start(images, self.eps, seed, indices, tag=tag)
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
