"""SPSA in the L-infinity ball: gradients estimated from logits (Uesato et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._adam import Adam
from purifiers.attacks._losses import margin
from purifiers.core import noise
from purifiers.core.active import active_set
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, Positive
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits, Rule

# Perturbed images per query: our choice; fills a GPU, and 224x224 RGB images then take 150 MB.
# The number of pairs per image is fixed, because the order of an image's queries determines a
# random defence's draws. 16 pairs already fill a processor.
AT_ONCE, PAIRS = 256, 16


class Spsa(Attack):
    """Descend the margin by Adam, with its gradient estimated from the logits at x +- delta * v.

    Algorithm 1: simultaneous perturbation by random signs v. The estimate is the mean of (f(x +
    delta v) - f(x - delta v)) / (2 delta) * v, where f is the logit of the true class minus the
    largest other one. Each step is projected onto the ball and [0, 1]. The attack uses no gradient
    of the model.

    It starts at the image, as Algorithm 1 does; ``cleverhans-lab/cleverhans`` starts at a random
    point of the ball. It returns the iterate with the lowest margin (our choice: never weaker on a
    defence that is not random); both return the last one. Perturbed images are clipped to [0, 1],
    because a defence accepts images only.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        steps: Adam steps.
        delta: size of the perturbation in every coordinate, on the same scale.
        learning_rate: Adam's learning rate, on the same scale.
        samples: queries per image and step, in pairs +-v: an even number. One further query
            evaluates the iterate.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.square.Square`.

    Defaults: delta, learning rate and samples from ``cleverhans-lab/cleverhans``; 100 steps, eps
    8/255 and ``stop`` are our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "samples"),
        passes="steps * (samples + 1) + 1",
        float32_only=True,  # its finite differences are smaller than rounding
        rules=(
            Rule(
                holds="samples % 2 == 0",
                text="samples is {samples}, but they come in pairs; choose an even number",
            ),
        ),
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        steps: Count = 100,
        delta: Positive = 0.01,
        learning_rate: Positive = 0.01,
        samples: Count = 128,
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.steps = steps
        self.delta = delta
        self.learning_rate = learning_rate
        self.samples = samples
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        with torch.no_grad():
            keys = noise.keys(seed, indices, "spsa").to(images.device)
            return self._descend(target, images, labels, indices, keys)

    def _descend(
        self, target: Target, images: Tensor, labels: Tensor, indices: Tensor, keys: Tensor
    ) -> Tensor:
        result, best, current, clean = images.clone(), images, images, images
        active = active_set(images, indices)
        lowest = images.new_full((len(images),), float("inf"))
        adam = Adam(images, self.learning_rate)
        for step in range(self.steps + 1 if len(images) else 0):
            logits = finite(target(current, active.indices))
            margins = margin(logits, labels)
            better = active.only(margins < lowest)
            lowest = torch.where(better, margins, lowest)
            best = torch.where(better.view(-1, 1, 1, 1), current, best)
            if step == self.steps:
                break
            if self.stop == "success":
                unbroken = target.unbroken(logits, current, labels, active.indices) | ~better
                kept = active.update(unbroken)
                if kept is not None:
                    active.store(result, best)
                    labels, keys, best, lowest, current, clean, *state = active.reduce(
                        kept, labels, keys, best, lowest, current, clean, *adam.state
                    )
                    if not len(active.rows):
                        break
                    adam.state = state
            slope = self._slope(target, current, labels, active.indices, keys, step)
            current = (current + adam.step(slope)).clamp(clean - self.eps, clean + self.eps)
            current = current.clamp_(0.0, 1.0)
        active.store(result, best)
        return result

    def _slope(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        keys: Tensor,
        step: int,
    ) -> Tensor:
        """Estimated gradient of the margin (n, C, H, W)."""
        pairs, size = torch.arange(self.samples // 2, device=keys.device), images[0].numel()
        several = AT_ONCE // (2 * min(len(pairs), PAIRS))
        slope = torch.zeros_like(images)
        for first in range(0, len(images), several):
            rows = slice(first, first + several)
            centre, row_labels, row_indices = images[rows].unsqueeze(1), labels[rows], indices[rows]
            for numbers in pairs.split(PAIRS):
                signs = noise.sign_vectors(keys[rows], step * len(pairs) + numbers, size)
                shift = self.delta * signs.view(len(centre), -1, *images.shape[1:])
                around = torch.stack([centre + shift, centre - shift], dim=2).clamp_(0.0, 1.0)
                n_queries = 2 * len(numbers)
                logits = target(around.flatten(0, 2), row_indices.repeat_interleave(n_queries))
                margins = margin(finite(logits), row_labels.repeat_interleave(n_queries))
                rise = margins.view(len(centre), 1, -1, 2).diff(dim=3).neg().squeeze(3)
                slope[rows] += (rise @ signs).view(len(centre), *images.shape[1:])
        return slope / (self.samples * self.delta)
