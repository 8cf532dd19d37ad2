"""The floor: the time of the forward passes and input gradients that an attack cannot avoid.

Plain PyTorch with frozen parameters, evaluation mode, contiguous memory and one batch. A library
above the floor spends time on other work. One below it computes the gradient more cheaply or
computes fewer gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from purifiers.timing import settings
from purifiers.timing.settings import Attack
from purifiers.timing.victims import CLASSES, Victim


def rows(victim: Victim, attack: Attack) -> dict[str, Callable[[int], None]]:
    """Floor of an attack, as the row ``floor``."""
    network = victim.frozen()
    n_images = len(victim.images)
    if attack.method == "deepfool_l2":
        active = _active(network, victim.images, victim.labels)
        return {"floor": lambda seed: gradients(network, victim, active, backwards=CLASSES - 1)}
    passes = settings.STEPS
    if attack.method == "cw_l2":
        passes = settings.CW_STEPS * attack.searches
    if attack.method == "pgd_eot":
        passes = settings.STEPS * settings.EOT_SAMPLES
    return {"floor": lambda seed: gradients(network, victim, [n_images] * passes)}


def gradients(network: nn.Module, victim: Victim, counts: list[int], backwards: int = 1) -> None:
    """Compute, for each count, one forward pass of that many images and its input gradients."""
    for count in counts:
        leaf = victim.images[:count].clone().requires_grad_(True)
        with torch.enable_grad():
            logits = network(leaf)
        for column in range(backwards):
            retain = column + 1 < backwards
            torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=retain)


def _active(network: nn.Module, images: Tensor, labels: Tensor) -> list[int]:
    """Number of images still active at each step of a plain DeepFool.

    Moosavi-Dezfooli et al. 2016, algorithm 2.
    """
    counts: list[int] = []
    original, total = images, torch.zeros_like(images)
    for _ in range(settings.DEEPFOOL_STEPS):
        leaf = (original + (1 + settings.OVERSHOOT) * total).clamp(0.0, 1.0).requires_grad_(True)
        logits = network(leaf)
        gaps = logits - logits.gather(1, labels[:, None])
        slopes = torch.stack(
            [torch.autograd.grad(gap.sum(), leaf, retain_graph=True)[0] for gap in gaps.unbind(1)]
        )
        unbroken = logits.argmax(1) == labels
        if not unbroken.any():
            break
        counts.append(int(unbroken.sum()))
        norms = slopes.flatten(2).norm(dim=2).T.clamp_min(1e-8)  # (n, classes)
        distance = (gaps.detach().abs() / norms).scatter(1, labels[:, None], float("inf"))
        nearest = distance.argmin(1)
        length = distance.gather(1, nearest[:, None]) + 1e-4
        step = slopes[nearest, torch.arange(len(labels))]
        step = step * (length / norms.gather(1, nearest[:, None]))[:, :, None, None]
        total, original, labels = (total + step)[unbroken], original[unbroken], labels[unbroken]
    return counts
