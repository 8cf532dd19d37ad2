"""Joint attack (score): against the classifier and along the score (Yoon et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._joint import Joint
from purifiers.core.target import Target, finite

VERSION = 1
BUDGET = ("steps",)
PASSES = "4 * steps"  # a score counts as one pass: what it really costs is the purifier's affair
NEEDS = ("score",)


class JointScore(Joint):
    """Steps of (sign g + sign s(x)) / 2, g the cross-entropy gradient and s the purifier's score.

    Appendix D.1 of the ADP supplement names it; the direction is `jmyoon1/adp`'s. The score is
    taken at the image without noise, so that there is one, however many draws g has.
    Parameters and defaults: see :class:`purifiers.attacks._joint.Joint`.
    """

    def restoring(self, target: Target, images: Tensor, indices: Tensor) -> Tensor:
        """The score (n, C, H, W)."""
        return finite(target.score(images), "scores")
