"""StAdv: displace pixels by a smooth bounded flow instead of recolouring (Xiao et al. 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks._adam import Adam
from purifiers.attacks._losses import margin
from purifiers.core.active import active_set
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.finite import finite
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits, Rule

# cassidylaidlaw/ReColorAdv: keeps the square root's gradient finite at equal flows
SOFTENING = 1e-10


class Stadv(Attack):
    """Minimise margin + smoothness * roughness over a flow with |flow| <= bound, by Adam.

    Equations 1, 2 and 4 of the paper, untargeted, in the form of
    ``cassidylaidlaw/perceptual-advex`` (and ``NVlabs/DiffPure``), which bounds the flow and does
    not clip the margin at 0. Each pixel of the result is sampled bilinearly at its own position
    plus its flow. As upstream, positions stay inside the image, but black is mixed in beyond the
    centres of the outermost pixels.

    Roughness is the sum over all pixels and their four neighbours of the L2 distance between the
    two flows.

    Args:
        bound: largest flow along each axis in grid coordinates, in which the image extends from -1
            to 1: a fraction of *half* the image's side. 0.05 moves a pixel of a 32x32 image by 0.8
            pixels.
        steps: Adam steps.
        learning_rate: Adam's learning rate, in grid coordinates.
        smoothness: weight of the roughness, the paper's tau.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.pgd.Pgd`.
        returned: ``best``: a misclassified iterate if there is one, and among equals that of the
            lowest objective, which is never weaker (our choice); it may be the image itself.
            ``last``: the last iterate, as upstream, for a training.

    Defaults: bound .05, learning rate .01 and smoothness .05 (there .0025 / bound) from
    ``cassidylaidlaw/perceptual-advex``; 100 steps as evaluated in its README; ``stop`` is our
    choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        joined_later=("returned",),
        passes="3 * steps + 1",
        norm="spatial",
        rules=(
            Rule(
                holds="bound <= 2",
                text=(
                    "bound is {bound}: choose a fraction of half the image's side, above 0 and at "
                    "most 2"
                ),
            ),
        ),
    )

    def __init__(
        self,
        *,
        bound: Positive = 0.05,
        steps: Count = 100,
        learning_rate: Positive = 0.01,
        smoothness: NonNegative = 0.05,
        stop: Stop = "never",
        returned: Literal["best", "last"] = "best",
    ) -> None:
        self.bound = bound
        self.steps = steps
        self.learning_rate = learning_rate
        self.smoothness = smoothness
        self.stop = stop
        self.returned = returned

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        result, best, clean = images.clone(), images, images
        active = active_set(images, indices)
        flow = images.new_zeros((len(images), *images.shape[2:], 2))
        lowest = images.new_full((len(images),), float("inf"))
        broken = torch.zeros_like(lowest, dtype=torch.bool)
        adam = Adam(flow, self.learning_rate)
        for step in range(self.steps + 1 if len(images) else 0):
            with torch.enable_grad():
                leaf = flow.requires_grad_(True)
                moved, uneven = warp(clean, leaf), roughness(leaf)
            warped = moved.detach().clamp(0.0, 1.0)
            if step < self.steps:
                gradient, logits, margins = input_gradient(
                    target, warped, labels, active.indices, margin
                )
            else:
                with torch.no_grad():
                    logits = finite(target(warped, active.indices))
                margins = margin(logits, labels)
            misclassified = ~target.unbroken(logits, warped, labels, active.indices)
            objective = margins + self.smoothness * uneven.detach()
            better = torch.where(misclassified == broken, objective < lowest, misclassified)
            if self.returned == "last":
                better = torch.ones_like(better)
            better = active.only(better)
            lowest, broken = torch.where(better, objective, lowest), broken | misclassified
            best = torch.where(better.view(-1, 1, 1, 1), warped, best)
            if step == self.steps:
                break
            weight = torch.full_like(uneven, self.smoothness)
            (slope,) = torch.autograd.grad((moved, uneven), leaf, (gradient, weight))
            flow = self._bounded(leaf.detach() + adam.step(slope))
            kept = active.update(~broken) if self.stop == "success" else None
            if kept is not None:
                active.store(result, best)
                labels, lowest, best, clean, flow, broken, *state = active.reduce(
                    kept, labels, lowest, best, clean, flow, broken, *adam.state
                )
                if not len(active.rows):
                    break
                adam.state = state
        active.store(result, best)
        return result

    def _bounded(self, flow: Tensor) -> Tensor:
        """Clip the flow to the bound and so that no pixel is sampled outside the image."""
        home = _identity(flow)
        low = (-1 - home).clamp_(min=-self.bound)
        return torch.clamp(flow, low, (1 - home).clamp_(max=self.bound))


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Sample images (n, C, H, W) at the positions displaced by the flow; differentiable.

    Args:
        flow: (n, H, W, 2): displacement right and down, in units of half the width and height.
    """
    return F.grid_sample(images, _identity(flow) + flow, mode="bilinear", align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """Sum over pixels and their four neighbours of the distance between their flows (n,).

    Args:
        flow: (n, H, W, 2).
    """
    across, down = flow.diff(dim=2), flow.diff(dim=1)
    distances = [(d.square().sum(dim=3) + SOFTENING).sqrt().sum(dim=(1, 2)) for d in (across, down)]
    return 2 * (distances[0] + distances[1])  # each pair of neighbours counts twice


def _identity(flow: Tensor) -> Tensor:
    """Centres of the pixels in grid coordinates (1, H, W, 2)."""
    height, width = flow.shape[1:3]
    unit = torch.eye(2, 3, dtype=flow.dtype, device=flow.device).unsqueeze(0)
    return F.affine_grid(unit, [1, 1, height, width], align_corners=False)
