"""Projected gradient descent in the L-infinity ball (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._linf import (
    ascend,
    attacked_labels,
    random_start,
)
from purifiers.core.choices import AttackLabels, Stop
from purifiers.core.component import Attack
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits, Rule


class Pgd(Attack):
    """Take signed cross-entropy steps with projection (section 2.1); return the last iterate.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps.
        random_start: begin uniformly inside the ball, by (seed, image index); else at the image.
        restarts: number of runs, each from a new random start, on the images that the attacked
            model still classifies correctly.
        attack_labels: ``"true"``, or ``"predicted"`` for the attacked model's prediction on the
            clean image, which libraries use when they get no label. Weaker where the model errs.
        stop: ``"never"`` runs all steps on all images. ``"success"`` freezes an image once it is
            misclassified: cheaper and equally strong against the attacked model itself, but too
            weak for images that a purifier will see.

    Defaults: eps, step_size, steps and random start from the paper's CIFAR-10 evaluation (8/255,
    2/255, 20); ``stop`` is our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "restarts"),
        passes="(3 * steps + 1) * restarts - 1",  # upper bound: broken images are not restarted
        rules=(
            Rule(
                when={"random_start": (False,)},
                holds="restarts == 1",
                text=(
                    "restarts is {restarts}, but they would all be the same without a random "
                    "start; set random_start or 1 restart"
                ),
            ),
        ),
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "2/255",
        steps: Count = 20,
        random_start: bool = True,
        restarts: Count = 1,
        attack_labels: AttackLabels = "true",
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.random_start = random_start
        self.restarts = restarts
        self.attack_labels = attack_labels
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        labels = attacked_labels(target, images, labels, indices, self.attack_labels)
        adversarial = self._run(target, images, labels, seed, indices, run=0)
        rows = torch.arange(len(images), device=images.device)
        for run in range(1, self.restarts):
            row_indices = indices[rows.to(indices.device)]
            with torch.no_grad():
                logits = finite(target(adversarial[rows], row_indices))
            rows = rows[target.unbroken(logits, adversarial[rows], labels[rows], row_indices)]
            if not len(rows):
                break
            row_indices = indices[rows.to(indices.device)]
            adversarial[rows] = self._run(
                target, images[rows], labels[rows], seed, row_indices, run
            )
        return adversarial

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
