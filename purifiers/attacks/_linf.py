"""Loop shared by FGSM, BIM, PGD and MIM: signed steps inside an L-infinity ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core import noise
from purifiers.core.active import active_set
from purifiers.core.capture import CUDA_GRAPHS, Captured
from purifiers.core.finite import finite
from purifiers.core.target import Target, input_gradient

RECORDED = 8
"""Fewest steps whose gradient is recorded on a device. Our choice: recording takes about 4."""

Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (n, C, H, W), labels (n,) and indices (n,) to input gradients and logits."""


def attacked_labels(
    target: Target, images: Tensor, labels: Tensor, indices: Tensor, by: str
) -> Tensor:
    """Labels (n,) that the attack moves away from.

    Args:
        by: ``true`` for the true labels, ``predicted`` for the attacked model's prediction on the
            clean images.
    """
    if by == "true" or not len(images):
        return labels
    with torch.no_grad():
        return finite(target(images, indices)).argmax(dim=1)


def cross_entropy_gradient(target: Target, step_size: float | None = None) -> Gradient:
    """Return a function that computes the gradient of each image's cross entropy.

    Args:
        step_size: of an attack that only uses the gradient's sign, see
            :func:`purifiers.core.target.contribution`.
    """

    def gradient_of(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        gradient, logits, _ = input_gradient(
            target, images, labels, indices, cross_entropy, step_size
        )
        return gradient, logits

    return gradient_of


def random_start(images: Tensor, eps: float, seed: int, indices: Tensor, tag: str) -> Tensor:
    """Uniform samples from the eps ball around each image, clipped to [0, 1].

    An image's sample depends on (seed, index) only.
    """
    shift = noise.uniform(seed, indices, images.shape[1:], low=-eps, high=eps, tag=tag)
    return (images + shift.to(images.device)).clamp_(0.0, 1.0)


def ascend(
    target: Target,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    *,
    start: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    stop: str = "never",
    decay: float | None = None,
    gradient_of: Gradient | None = None,
) -> Tensor:
    """Ascend by ``step_size * sign(direction)``, clipped to the eps ball and to [0, 1].

    Args:
        start: first iterate (n, C, H, W), inside the ball.
        stop: ``"never"`` makes all steps for every image. ``"success"`` freezes an image once it is
            misclassified, which saves its remaining passes. Such an image is close to the boundary
            and much weaker against a purifier that was not attacked.
        decay: ``None`` follows the gradient; a number follows the momentum g <- decay * g +
            gradient / ||gradient||_1 (Dong et al. 2018, equation 6).
        gradient_of: computes the ascent direction; the cross-entropy gradient if None.

    Returns:
        Each image's last iterate (n, C, H, W).
    """
    lower, upper = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    current, result = start.clone(), start.clone()
    active = active_set(images, indices)
    recorded = None
    if gradient_of is None:
        gradient_of = cross_entropy_gradient(target, step_size)
        if not active.at_once and stop == "never" and steps >= RECORDED:
            gradient_of, recorded = _recorded(target, gradient_of)
    momentum = torch.zeros_like(images if decay is not None else labels)  # else unused
    for _ in range(steps if len(images) else 0):
        gradient, logits = gradient_of(current, labels, active.indices)
        if stop == "success":
            kept = active.update(target.unbroken(logits, current, labels, active.indices))
            if kept is not None:
                active.store(result, current)
                current, labels, lower, upper, gradient, momentum = active.reduce(
                    kept, current, labels, lower, upper, gradient, momentum
                )
                if not len(active.rows):
                    break
        if decay is not None:
            norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            # a saturated model's gradient may be exactly zero
            gradient = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            gradient = momentum.mul_(decay).add_(gradient)
        # in place; the clamp leaves a broken image, which lies inside the ball, as it is
        current.add_(active.moved(gradient.sign(), 0.0), alpha=step_size)
        torch.clamp(current, lower, upper, out=current)
    active.store(result, current)
    if recorded is not None:
        target.step_path = recorded.path
    return result


def _recorded(target: Target, gradient_of: Gradient) -> tuple[Gradient, Captured]:
    """The same gradient, recorded at its first call, and what records it."""
    first_indices: list[Tensor] = []

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return gradient_of(images, labels, first_indices[0])

    recorded = Captured(step, lambda: target.capturable, CUDA_GRAPHS)

    def replayed(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        first_indices[:] = [indices]
        gradient, logits = recorded(images, labels)
        return gradient, logits

    return replayed, recorded
