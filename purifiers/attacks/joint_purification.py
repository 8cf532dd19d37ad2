"""Joint attack (full): against the classifier, along the purification (Yoon et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._joint import Joint
from purifiers.core.finite import finite
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class JointPurification(Joint):
    """Steps of (sign g + sign r) / 2, with r the purified minus the attacked image over all draws.

    This is "joint (full)" of appendix D.1 of the ADP supplement; the direction is that of
    `jmyoon1/adp`. r is the sum over the draws. g and r use separate draws (our choice), so that g
    may be any gradient of the threat model. Without a purifier r is zero, and the steps are half of
    PGD's. Parameters and defaults: see :class:`purifiers.attacks._joint.Joint`.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="6 * steps",  # every step purifies twice: for the gradient and the direction
    )

    def restoring(self, target: Target, images: Tensor, indices: Tensor) -> Tensor:
        """Displacement (n, C, H, W) by the purifier, summed over the draws."""
        total = torch.zeros_like(images)
        for _ in range(target.eot_samples):
            total += target.purify(images, indices) - images
        return finite(total, "purified images")
