"""Change of variable that keeps pixels inside a box (Carlini & Wagner 2017, section V.B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks._losses import margin
from purifiers.core.target import Loss

# nlcarlini/nn_robust_attacks: keeps w finite for a pixel on the edge of its box
SHRINK = 0.999999


def to_tanh(images: Tensor, low: Tensor | float = 0.0, high: Tensor | float = 1.0) -> Tensor:
    """Map images in the box from ``low`` to ``high`` to w (n, C, H, W)."""
    return torch.atanh((2 * (images - low) / (high - low) - 1) * SHRINK)


def to_image(w: Tensor) -> Tensor:
    """Map w to images (n, C, H, W) in the box [0, 1]; rescale the result for another box."""
    return (torch.tanh(w) + 1) / 2


def hinge(confidence: float) -> Loss:
    """max(z_y - max_other z + confidence, 0) per image: f_6 of section V.A, untargeted."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.relu(margin(logits, labels) + confidence)

    return loss
