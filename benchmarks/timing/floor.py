"""The floor: the forwards and input gradients that an attack cannot do without, and nothing else.

Parameters frozen, evaluation mode, contiguous memory, one batch: what plain PyTorch costs. A
library above it spends time on something else; one below it found a cheaper way to the gradient,
or did without some of them.
"""

from __future__ import annotations

from collections.abc import Callable

import settings
import torch
from settings import Attack
from torch import Tensor, nn
from victims import CLASSES, Victim


def rows(victim: Victim, attack: Attack) -> dict[str, Callable[[int], None]]:
    """The floor of an attack, as the row ``floor``."""
    network = victim.frozen()
    every = len(victim.images)
    if attack.method == "deepfool_l2":
        active = _active(network, victim.images, victim.labels)
        return {"floor": lambda seed: gradients(network, victim, active, backwards=CLASSES - 1)}
    passes = settings.STEPS
    if attack.method == "cw_l2":
        passes = settings.CW_STEPS * attack.searches
    if attack.method == "pgd_eot":
        passes = settings.STEPS * settings.EOT_SAMPLES
    return {"floor": lambda seed: gradients(network, victim, [every] * passes)}


def gradients(network: nn.Module, victim: Victim, counts: list[int], backwards: int = 1) -> None:
    """For each count: one forward pass of so many images, and input gradients from it."""
    for count in counts:
        leaf = victim.images[:count].clone().requires_grad_(True)
        with torch.enable_grad():
            logits = network(leaf)
        for column in range(backwards):
            more = column + 1 < backwards
            torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=more)


def _active(network: nn.Module, images: Tensor, labels: Tensor) -> list[int]:
    """How many images a plain DeepFool (Moosavi-Dezfooli et al. 2016, algorithm 2) still has to
    move at each of its steps."""
    counts: list[int] = []
    original, total = images, torch.zeros_like(images)
    for _ in range(settings.DEEPFOOL_STEPS):
        leaf = (original + (1 + settings.OVERSHOOT) * total).clamp(0.0, 1.0).requires_grad_(True)
        logits = network(leaf)
        gaps = logits - logits.gather(1, labels[:, None])
        slopes = torch.stack(
            [torch.autograd.grad(gap.sum(), leaf, retain_graph=True)[0] for gap in gaps.unbind(1)]
        )
        left = logits.argmax(1) == labels
        if not left.any():
            break
        counts.append(int(left.sum()))
        norms = slopes.flatten(2).norm(dim=2).T.clamp_min(1e-8)  # (n, classes)
        distance = (gaps.detach().abs() / norms).scatter(1, labels[:, None], float("inf"))
        nearest = distance.argmin(1)
        length = distance.gather(1, nearest[:, None]) + 1e-4
        step = slopes[nearest, torch.arange(len(labels))]
        step = step * (length / norms.gather(1, nearest[:, None]))[:, :, None, None]
        total, original, labels = (total + step)[left], original[left], labels[left]
    return counts
