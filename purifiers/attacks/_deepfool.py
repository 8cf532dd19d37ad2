"""DeepFool's loop, for any norm (Moosavi-Dezfooli, Fawzi & Frossard 2016, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.attacks._linf import check_count
from purifiers.core.errors import UserError
from purifiers.core.target import Target, finite

# LTS4/DeepFool: added to each step. Without it an image with pixels at 0 or 1, which the step
# cannot move, creeps up to the boundary and never crosses it.
MARGIN = 1e-4


def check_deepfool(owner: str, steps: int, candidates: int) -> None:
    """Refuse less than one step or two candidates.

    Raises:
        UserError: naming the one that is too small.
    """
    check_count(owner, steps=steps)
    if candidates < 2:
        raise UserError(
            f"{owner}: candidates is {candidates}, but the true class and at least one other are "
            "needed: 2 or more"
        )


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
    """Step to the nearest linearised class boundary until the label is lost.

    The step towards class k has length |f_k| / ||w_k||_* along the direction in which w_k changes
    f_k most, f and w being value and gradient of the logit difference to the true class.

    Args:
        clip_sum: forget what the range of pixels cut off; otherwise the sum of steps keeps it.
        dual_norm: slopes (n, C, H, W) to their dual norms (n,).
        steepest: slopes to directions of length 1 (n, C, H, W), zero where the slope is.
        longest: length of the longest step; none needs more to cross the whole range of pixels.

    Returns:
        Each image's first misclassified iterate (n, C, H, W), or its last one.
    """
    result, original, total = images.clone(), images, torch.zeros_like(images)
    rows, current, rivals = torch.arange(len(images), device=images.device), images, labels
    for step in range(steps if len(images) else 0):
        leaf, logits = _forward(target, current, indices)
        if step == 0:
            rivals = _strongest(logits.detach(), labels, candidates - 1)
        unbroken = target.unbroken(logits.detach(), current, labels, indices)
        kept = int(unbroken.sum())
        lost = len(rows) - kept
        if lost:
            result[rows] = current
        if not kept:
            return result
        # a second forward pass without the finished images, where it costs less than their
        # part of the backward passes
        if lost * rivals.shape[1] > kept:
            rows, labels, rivals = rows[unbroken], labels[unbroken], rivals[unbroken]
            current, original, total = current[unbroken], original[unbroken], total[unbroken]
            indices = indices[unbroken.to(indices.device)]
            leaf, logits = _forward(target, current, indices)
            lost, unbroken = 0, unbroken[unbroken]
        distance, slope = _nearest(leaf, logits, labels, rivals, dual_norm)
        if lost:
            rows, labels, rivals = rows[unbroken], labels[unbroken], rivals[unbroken]
            original, total = original[unbroken], total[unbroken]
            indices = indices[unbroken.to(indices.device)]
            distance, slope = distance[unbroken], slope[unbroken]
        reach = (distance + MARGIN).clamp_max(longest).view(-1, 1, 1, 1)
        total = total - reach * steepest(slope)
        current = (original + (1 + overshoot) * total).clamp_(0.0, 1.0)
        if clip_sum:
            total = (current - original) / (1 + overshoot)
    result[rows] = current
    return result


def _forward(target: Target, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        return leaf, finite(target(leaf, indices))


def _strongest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The classes with the largest logits besides the true one, (n, count) or fewer."""
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _nearest(
    leaf: Tensor,
    logits: Tensor,
    labels: Tensor,
    rivals: Tensor,
    dual_norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Distance (n,) to the nearest linearised boundary and the slope (n, C, H, W) towards it."""
    shortest = torch.full_like(logits[:, 0], float("inf")).detach()
    towards = torch.zeros_like(leaf)
    with torch.enable_grad():
        gaps = (logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, rivals)).unbind(dim=1)
    for k, gap in enumerate(gaps, start=1):
        ones = torch.ones_like(gap)
        (slope,) = torch.autograd.grad(gap, leaf, ones, retain_graph=k < len(gaps))
        norm = finite(dual_norm(slope), "gradients")
        # 1e-12 (our choice): a flat direction is far away, not a division by zero. A random
        # model may have kept the label at one draw and lost it at this one
        distance = gap.detach().abs() / norm.clamp_min(1e-12)
        closer = distance < shortest
        shortest = torch.where(closer, distance, shortest)
        towards = torch.where(closer.view(-1, 1, 1, 1), slope, towards)
    return shortest, towards
