"""StAdv: move pixels by a smooth bounded flow instead of changing them (Xiao et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks._adam import Adam
from purifiers.attacks._linf import check_count, check_stop
from purifiers.attacks._losses import margin
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.target import Target, finite, input_gradient
from purifiers.core.traits import AttackTraits

# cassidylaidlaw/ReColorAdv: keeps the square root's slope finite where neighbours move alike
SOFTENING = 1e-10


class Stadv(Attack):
    """Minimise margin + smoothness * roughness over a flow with |flow| <= bound, by Adam.

    Equations 1, 2 and 4 of the paper, untargeted, in the form of ``cassidylaidlaw/perceptual-
    advex`` (and ``NVlabs/DiffPure``), which bounds the flow and does not cut the margin off at 0.
    Each pixel of the result is read, bilinearly, at its own place plus its flow. As there, places
    stay inside the image, but beyond the centres of its outermost pixels black is mixed in.
    Roughness is the sum over all pixels and their four neighbours of the L2 distance between the
    two flows. Of an image's iterates a misclassified one is preferred to others, then the lowest
    objective decides; upstream looks at the objective only, and keeps the flow one step after it.

    Args:
        bound: largest flow along each axis in grid coordinates, in which the image reaches from
            -1 to 1: a fraction of *half* the image's side. 0.05 moves a pixel of a 32x32 image
            by 0.8 pixels.
        steps: Adam steps.
        learning_rate: Adam's, in grid coordinates.
        smoothness: weight of the roughness, the paper's tau.
        stop: ``"never"`` or ``"success"``, as in :class:`purifiers.attacks.pgd.Pgd`.

    Defaults: bound .05, learning rate .01 and smoothness .05 (there .0025 / bound) are
    ``cassidylaidlaw/perceptual-advex``'s; 100 steps as its README evaluates; ``stop`` is our
    choice.
    """

    traits = AttackTraits(version=1, budget=("steps",), passes="3 * steps + 1", norm="spatial")

    def __init__(
        self,
        *,
        bound: float = 0.05,
        steps: int = 100,
        learning_rate: float = 0.01,
        smoothness: float = 0.05,
        stop: str = "never",
    ) -> None:
        check_count("stadv", steps=steps)
        if not 0 < bound <= 2:
            raise UserError(
                f"stadv: bound is {bound}, but a flow is a fraction of half the image's side: "
                "above 0 and at most 2"
            )
        self.bound = bound
        self.steps = steps
        self.learning_rate = learning_rate
        self.smoothness = smoothness
        self.stop = check_stop("stadv", stop)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        result, best, clean = images.clone(), images, images
        rows = torch.arange(len(images), device=images.device)
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
                gradient, logits, found = input_gradient(target, warped, labels, indices, margin)
            else:
                with torch.no_grad():
                    logits = finite(target(warped, indices))
                found = margin(logits, labels)
            lost = ~target.unbroken(logits, warped, labels, indices)
            objective = found + self.smoothness * uneven.detach()
            better = torch.where(lost == broken, objective < lowest, lost)
            lowest, broken = torch.where(better, objective, lowest), broken | lost
            best = torch.where(better.view(-1, 1, 1, 1), warped, best)
            if step == self.steps:
                break
            weight = torch.full_like(uneven, self.smoothness)
            (slope,) = torch.autograd.grad((moved, uneven), leaf, (gradient, weight))
            flow = self._bounded(leaf.detach() + adam.step(slope))
            if self.stop == "success" and broken.any():
                result[rows] = best
                kept = ~broken
                rows, labels, lowest = rows[kept], labels[kept], lowest[kept]
                best, clean, flow, broken = best[kept], clean[kept], flow[kept], broken[kept]
                if not len(rows):
                    break
                indices = indices[kept.to(indices.device)]
                adam.keep(kept)
        result[rows] = best
        return result

    def _bounded(self, flow: Tensor) -> Tensor:
        """Within the bound, and so that no pixel is read from outside of the image."""
        home = _identity(flow)
        low = (-1 - home).clamp_(min=-self.bound)
        return torch.clamp(flow, low, (1 - home).clamp_(max=self.bound))


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (n, C, H, W) whose pixels are read where the flow points; differentiable.

    Args:
        flow: (n, H, W, 2): to the right and down, in units of half the width and half the height.
    """
    return F.grid_sample(images, _identity(flow) + flow, mode="bilinear", align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """Sum over pixels and their four neighbours of the distance of their flows (n,).

    Args:
        flow: (n, H, W, 2).
    """
    across, down = flow.diff(dim=2), flow.diff(dim=1)
    distances = [(d.square().sum(dim=3) + SOFTENING).sqrt().sum(dim=(1, 2)) for d in (across, down)]
    return 2 * (distances[0] + distances[1])  # each pair of neighbours is met twice


def _identity(flow: Tensor) -> Tensor:
    """Centres of the pixels in grid coordinates (1, H, W, 2)."""
    height, width = flow.shape[1:3]
    unit = torch.eye(2, 3, dtype=flow.dtype, device=flow.device).unsqueeze(0)
    return F.affine_grid(unit, [1, 1, height, width], align_corners=False)
