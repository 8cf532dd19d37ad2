"""Joint attack (full): against the classifier and with the purification (Yoon et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._joint import Joint
from purifiers.core.target import Target, finite
from purifiers.core.traits import AttackTraits


class JointPurification(Joint):
    """Steps of (sign g + sign r) / 2, r the sum of purified minus attacked image over all draws.

    Appendix D.1 of the ADP supplement calls it joint (full); the direction is `jmyoon1/adp`'s.
    g and r have draws of their own (our choice, so that g may be any gradient of the threat
    model). Where nothing purifies r is zero, and the steps are half of PGD's.
    Parameters and defaults: see :class:`purifiers.attacks._joint.Joint`.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="6 * steps",  # every step purifies twice: for the gradient and for the direction
    )

    def restoring(self, target: Target, images: Tensor, indices: Tensor) -> Tensor:
        """Total displacement (n, C, H, W) over the draws."""
        total = torch.zeros_like(images)
        for _ in range(target.eot_samples):
            total += target.purify(images, indices) - images
        return finite(total, "purified images")
