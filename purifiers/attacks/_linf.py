"""The loop that FGSM, PGD and MIM share: signed steps inside an L-infinity ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core import noise
from purifiers.core.errors import UserError, check_choice
from purifiers.core.target import Target, finite, input_gradient

STOPS = ("never", "success")
LABELS = ("true", "predicted")

Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (n, C, H, W), labels (n,) and indices (n,) to input gradient and logits."""


def check_stop(owner: str, stop: str) -> str:
    """Return ``stop`` if it is one of ``STOPS``.

    Raises:
        UserError: it is not.
    """
    return check_choice(f"{owner}: stop", stop, STOPS)


def check_labels(owner: str, labels: str) -> str:
    """Return ``labels`` if it is one of ``LABELS``.

    Raises:
        UserError: it is not.
    """
    return check_choice(f"{owner}: attack_labels", labels, LABELS)


def followed(target: Target, images: Tensor, labels: Tensor, indices: Tensor, by: str) -> Tensor:
    """The labels (n,) that an attack moves away from: the true ones, or those that the attacked
    model gives to the unattacked images."""
    if by == "true" or not len(images):
        return labels
    with torch.no_grad():
        return finite(target(images, indices)).argmax(dim=1)


def check_count(owner: str, **counts: int) -> None:
    """Refuse counts (steps, queries ...) below one.

    Raises:
        UserError: naming the first that is too small.
    """
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{owner}: {name} is {value}, but at least 1 is needed")


def cross_entropy_gradient(target: Target) -> Gradient:
    """The gradient of each image's own cross entropy."""

    def gradient_of(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        gradient, logits, _ = input_gradient(target, images, labels, indices, cross_entropy)
        return gradient, logits

    return gradient_of


def random_start(images: Tensor, eps: float, seed: int, indices: Tensor, tag: str) -> Tensor:
    """Uniform in the eps ball around each image, clipped to [0, 1]; decided by (seed, index)."""
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
    """Climb by ``step_size * sign(direction)``, clipped to the eps ball and to [0, 1].

    Args:
        start: where the climb begins (n, C, H, W), inside the ball.
        stop: ``"never"`` lets every image make all steps. ``"success"`` freezes an image as soon
            as it is misclassified, which saves its remaining passes; such an image lies just
            behind the boundary and is far weaker against a purifier that was not attacked.
        decay: ``None`` climbs along the gradient; a number along the momentum
            g <- decay * g + gradient / ||gradient||_1 (Dong et al. 2018, equation 6).
        gradient_of: what is climbed; the cross entropy's gradient if None.

    Returns:
        Each image's last iterate (n, C, H, W).
    """
    gradient_of = gradient_of or cross_entropy_gradient(target)
    lower, upper = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    current, result = start.clone(), start.clone()
    rows = torch.arange(len(images), device=images.device)
    momentum = torch.zeros_like(images) if decay is not None else None
    for _ in range(steps if len(images) else 0):
        gradient, logits = gradient_of(current, labels, indices)
        if stop == "success":
            unbroken = target.unbroken(logits, current, labels, indices)
            if not unbroken.all():
                result[rows] = current
                rows, current, labels = rows[unbroken], current[unbroken], labels[unbroken]
                if not len(rows):
                    break
                indices = indices[unbroken.to(indices.device)]
                lower, upper, gradient = lower[unbroken], upper[unbroken], gradient[unbroken]
                momentum = None if momentum is None else momentum[unbroken]
        if decay is not None and momentum is not None:
            norm = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            # a saturated model's gradient may be exactly zero
            gradient = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            gradient = momentum.mul_(decay).add_(gradient)
        current.add_(gradient.sign(), alpha=step_size)
        torch.clamp(current, lower, upper, out=current)
    result[rows] = current
    return result
