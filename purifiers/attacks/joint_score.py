"""Joint attack (score): against the classifier, along the purifier's score (Yoon et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._joint import Joint
from purifiers.core.finite import finite
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class JointScore(Joint):
    """Steps of (sign g + sign s(x)) / 2, g the cross-entropy gradient and s the purifier's score.

    Appendix D.1 of the ADP supplement names this attack; the direction is that of `jmyoon1/adp`.
    The score is taken at the image without noise, so it is the same however many draws g has.
    Parameters and defaults: see :class:`purifiers.attacks._joint.Joint`.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="4 * steps",  # a score counts as one pass; its real cost depends on the purifier
        needs=("score",),
    )

    def restoring(self, target: Target, images: Tensor, indices: Tensor) -> Tensor:
        """Score of the purifier at the images, (n, C, H, W)."""
        return finite(target.score(images), "scores")
