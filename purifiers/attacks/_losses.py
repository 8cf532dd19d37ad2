"""Per-image losses shared by the attacks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per image (n,); unreduced, so that batch mates do not affect a gradient."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus the largest other logit (n,); negative when misclassified."""
    column = labels.unsqueeze(1)
    rival = logits.scatter(1, column, float("-inf")).max(dim=1).values
    return logits.gather(1, column).squeeze(1) - rival
