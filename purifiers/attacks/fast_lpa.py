"""Fast Lagrangian perceptual attack: LPIPS in the network's own layers (Laidlaw et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.attacks._losses import margin
from purifiers.attacks._perceptual import Perception, distances
from purifiers.core import noise
from purifiers.core.component import Attack
from purifiers.core.finite import finite
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits

START_SPREAD = 0.01  # standard deviation of the start, as the constants below from upstream
DECAY = 0.1  # of the step's length over the attack; the weight grows by its inverse
PROBE = 0.1  # L2 length of the finite difference that measures the distance of a step
SOFTENING = 1e-4  # keeps a step finite where the layers do not change
BISECTIONS = 10


class FastLpa(Attack):
    """Descend margin + weight * max(0, distance - bound) by steps of a set perceptual length.

    The distance is :func:`purifiers.attacks._perceptual.embedding`'s in the attacked classifier's
    own layers ("self-bounded"), of unpurified images. Step t of T has the length
    bound * 0.1^(t/T), measured by a finite difference, and the weight 10 * 0.1^(1 - t/T)
    (``FastLagrangePerceptualAttack`` of ``cassidylaidlaw/perceptual-advex``, also the source of the
    constants; its first iterate may leave [0, 1], here it is clipped).

    Args:
        bound: largest perceptual distance.
        steps: number of steps.
        weight: of the excess distance at the end, the paper's lambda.
        taps: names of the layers; (): those of :func:`purifiers.core.taps.layer_taps`, which are
            a ResNet's four stages, as upstream.
        projected: bisect the way to the image until the distance is at most ``bound``. Upstream
            does not in training, where the bound is exceeded slightly.

    Defaults: bound .5 and 20 steps upstream; upstream's evaluation also bisects if its Newton steps
    fail.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="7 * steps + 11",  # 4 * steps + 11 if the attacked model is the network itself
        norm="lpips",
    )

    def __init__(
        self,
        *,
        bound: Positive = 0.5,
        steps: Count = 20,
        weight: NonNegative = 10.0,
        taps: Sequence[str] = (),
        projected: bool = True,
    ) -> None:
        self.bound, self.steps, self.weight = bound, steps, weight
        self.taps, self.projected = tuple(taps), projected

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: the model is a plain function, or has no such layers.
        """
        if not len(images):
            return images
        perception = Perception(target, self.taps)
        with torch.no_grad():
            clean = perception(images)
        start = START_SPREAD * noise.normal(seed, indices, images.shape[1:], tag="fast_lpa")
        current = (images + start.to(images.device)).clamp_(0.0, 1.0)
        for step in range(self.steps):
            progress = step / self.steps
            weight = self.weight * DECAY ** (1 - progress)
            gradient, embedded = self._gradient(
                target, perception, current, labels, indices, clean, weight
            )
            flat = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            downhill = -gradient / (flat + 1e-8)
            with torch.no_grad():
                probed = perception(current + PROBE * downhill)
                rate = distances(embedded, probed) / PROBE
            length = self.bound * DECAY**progress / (rate + SOFTENING)
            current = (current + length.view(-1, 1, 1, 1) * downhill).clamp_(0.0, 1.0)
        return self._project(perception, current, images, clean) if self.projected else current

    def _gradient(
        self,
        target: Target,
        perception: Perception,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        clean: Tensor,
        weight: float,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the objective (n, C, H, W), and the images' embeddings (n, d)."""
        pushed: Tensor | None = None
        if not perception.bare:
            pushed, _, _ = input_gradient(target, images, labels, indices, margin)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            if pushed is None:
                embedded, logits = perception.with_logits(leaf)
                objective = margin(finite(logits), labels)
            else:
                embedded = perception(leaf)
                objective = embedded.new_zeros(len(images))
            excess = torch.relu(distances(embedded, clean) - self.bound)
            objective = objective + weight * excess
            (gradient,) = torch.autograd.grad(objective.sum(), leaf)
        if pushed is not None:
            gradient = gradient + pushed
        return finite(gradient, "gradients"), embedded.detach()

    @torch.no_grad()
    def _project(
        self, perception: Perception, points: Tensor, images: Tensor, clean: Tensor
    ) -> Tensor:
        """The farthest tried points between ``images`` and ``points`` within the bound."""

        def between(share: Tensor) -> Tensor:
            return images + share.view(-1, 1, 1, 1) * (points - images)

        def inside(share: Tensor) -> Tensor:
            return distances(perception(between(share)), clean) <= self.bound

        low, high = images.new_zeros(len(images)), images.new_ones(len(images))
        low = torch.where(inside(high), high, low)
        for _ in range(BISECTIONS - 1):
            middle = (low + high) / 2
            fits = inside(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return between(low).clamp_(0.0, 1.0)
