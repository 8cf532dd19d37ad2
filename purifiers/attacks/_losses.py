"""Per-image losses and checks that the attacks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each image (n,): no image's gradient depends on its batch mates."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus the largest other one (n,); negative when misclassified."""
    column = labels.unsqueeze(1)
    rival = logits.scatter(1, column, float("-inf")).max(dim=1).values
    return logits.gather(1, column).squeeze(1) - rival


def finite(logits: Tensor) -> Tensor:
    """Return ``logits`` unchanged.

    Raises:
        RuntimeError: they are not finite: a broken model must not count as a robust one.
    """
    if not torch.isfinite(logits).all():
        raise RuntimeError("the attacked model gave logits that are not finite")
    return logits
