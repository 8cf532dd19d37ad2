"""DeepFool in the L-infinity norm (Moosavi-Dezfooli, Fawzi & Frossard 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._deepfool import deepfool
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, NonNegative, Several
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class DeepfoolLinf(Attack):
    """Step to the nearest linearised class boundary until the image is misclassified.

    Algorithm 2 with the steps of section 3.3 for p = infinity: the step towards class k is |f_k| /
    ||w_k||_1 * sign(w_k). f and w are the value and the gradient of the logit difference to the
    true class. Images that are already misclassified are returned unchanged.

    Args:
        eps: L-infinity radius to which the result is clipped; ``None`` returns the minimal
            perturbation of any size. An image that needs more than eps is clipped, not dropped; it
            is then usually classified correctly.
        steps: largest number of linearisations.
        candidates: number of classes considered, the true one included; the others are those with
            the largest logits on the clean image.
        overshoot: the total perturbation is scaled by 1 + overshoot (the paper's eta).
        clip_sum: also remove from the sum of steps what clipping to [0, 1] removes, as in
            `adv-lib`. Otherwise only the iterate is clipped, as in foolbox (the paper has no pixel
            range). Smaller perturbations where many pixels are black or white.

    Defaults: overshoot .02 from the paper; 50 steps and 10 candidates from ``bethgelab/foolbox``;
    eps 8/255 is our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "candidates"),
        joined_later=("clip_sum",),
        passes="2 * steps * candidates",
        float32_only=True,  # ends on the decision boundary, where rounding decides the label
    )

    def __init__(
        self,
        *,
        eps: Length | None = "8/255",
        steps: Count = 50,
        candidates: Several = 10,
        overshoot: NonNegative = 0.02,
        clip_sum: bool = False,
    ) -> None:
        self.eps = eps
        self.steps = steps
        self.candidates = candidates
        self.overshoot = overshoot
        self.clip_sum = clip_sum

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        result = deepfool(
            target,
            images,
            labels,
            indices,
            steps=self.steps,
            candidates=self.candidates,
            overshoot=self.overshoot,
            clip_sum=self.clip_sum,
            dual_norm=_l1,
            steepest=torch.sign,
            longest=1.0,
        )
        return result if self.eps is None else result.clamp(images - self.eps, images + self.eps)


def _l1(slopes: Tensor) -> Tensor:
    return slopes.abs().sum(dim=(1, 2, 3))
