"""DeepFool's iteration for any norm (Moosavi-Dezfooli, Fawzi & Frossard 2016, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.core.active import active_set
from purifiers.core.finite import finite
from purifiers.core.target import Target

# LTS4/DeepFool: added to each step. Without it, an image with saturated pixels (0 or 1)
# converges to the boundary and never crosses it.
MARGIN = 1e-4


def deepfool(
    target: Target,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    *,
    steps: int,
    candidates: int,
    overshoot: float,
    clip_sum: bool,
    dual_norm: Callable[[Tensor], Tensor],
    steepest: Callable[[Tensor], Tensor],
    longest: float,
) -> Tensor:
    """Step to the nearest linearised class boundary until the image is misclassified.

    The step towards class k has length |f_k| / ||w_k||_* along the direction in which w_k changes
    f_k most. f and w are the value and the gradient of the logit difference to the true class.

    Args:
        steps: largest number of linearisations.
        candidates: number of classes considered, the true one included.
        overshoot: the total perturbation is scaled by 1 + overshoot.
        clip_sum: accumulate the clipped perturbation; otherwise the steps are summed unclipped.
        dual_norm: gradients (n, C, H, W) to their dual norms (n,).
        steepest: gradients to directions of norm 1 (n, C, H, W), zero where the gradient is zero.
        longest: largest length of a step; no image needs more to cross the whole pixel range.

    Returns:
        Each image's first misclassified iterate (n, C, H, W), or its last iterate.
    """
    result, original, total = images.clone(), images, torch.zeros_like(images)
    current, rivals = images, labels
    active = active_set(images, indices, longest_wait=1)  # a step is many passes
    for step in range(steps if len(images) else 0):
        leaf, logits = _forward(target, current, active.indices)
        if step == 0:
            rivals = _strongest(logits.detach(), labels, candidates - 1)
        kept = active.update(target.unbroken(logits.detach(), current, labels, active.indices))
        if kept is not None:
            active.store(result, current)
            if not len(kept):
                return result
        # a second forward pass without the broken images, where it is cheaper than their
        # backward passes
        if kept is not None and (len(current) - len(kept)) * rivals.shape[1] > len(kept):
            labels, rivals, current, original, total = active.reduce(
                kept, labels, rivals, current, original, total
            )
            leaf, logits = _forward(target, current, active.indices)
            kept = None
        distance, slope = _nearest(leaf, logits, labels, rivals, dual_norm)
        if kept is not None:
            labels, rivals, current, original, total, distance, slope = active.reduce(
                kept, labels, rivals, current, original, total, distance, slope
            )
        reach = (distance + MARGIN).clamp_max(longest).view(-1, 1, 1, 1)
        moved = total - reach * steepest(slope)
        current = active.moved((original + (1 + overshoot) * moved).clamp_(0.0, 1.0), current)
        if clip_sum:
            moved = (current - original) / (1 + overshoot)
        total = active.moved(moved, total)
    active.store(result, current)
    return result


def _forward(target: Target, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        return leaf, finite(target(leaf, indices))


def _strongest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Classes with the largest logits other than the true one, (n, count) or fewer."""
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _nearest(
    leaf: Tensor,
    logits: Tensor,
    labels: Tensor,
    rivals: Tensor,
    dual_norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Distance (n,) to the nearest linearised boundary and the gradient (n, C, H, W) towards it."""
    shortest = torch.full_like(logits[:, 0], float("inf")).detach()
    towards = torch.zeros_like(leaf)
    with torch.enable_grad():
        gaps = (logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, rivals)).unbind(dim=1)
    for k, gap in enumerate(gaps, start=1):
        ones = torch.ones_like(gap)
        (slope,) = torch.autograd.grad(gap, leaf, ones, retain_graph=k < len(gaps))
        norm = finite(dual_norm(slope), "gradients")
        # 1e-12 (our choice): a zero gradient means a distant boundary, not a division by zero.
        # abs(), because a random model may misclassify the image at this draw only
        distance = gap.detach().abs() / norm.clamp_min(1e-12)
        closer = distance < shortest
        shortest = torch.where(closer, distance, shortest)
        towards = torch.where(closer.view(-1, 1, 1, 1), slope, towards)
    return shortest, towards
