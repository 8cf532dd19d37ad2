"""DeepFool in the L2 norm (Moosavi-Dezfooli, Fawzi & Frossard 2016)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._deepfool import deepfool
from purifiers.attacks._l2 import direction, project
from purifiers.core.component import Attack
from purifiers.core.numbers import Radius
from purifiers.core.ranges import Count, NonNegative, Several
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class DeepfoolL2(Attack):
    """Step to the nearest linearised class boundary until the image is misclassified.

    Algorithm 2: the step towards class k is |f_k| / ||w_k||_2^2 * w_k. f and w are the value and
    the gradient of the logit difference to the true class. Images that are already misclassified
    are returned unchanged.

    Args:
        radius: project the result onto the L2 ball of this radius around the image; ``None``
            returns the minimal perturbation of any size. An image that needs a larger perturbation
            is projected, not dropped; it is then usually classified correctly.
        steps: largest number of linearisations.
        candidates: number of classes considered, the true one included; the others are those with
            the largest logits on the clean image.
        overshoot: the total perturbation is scaled by 1 + overshoot (the paper's eta).
        clip_sum: also remove from the sum of steps what clipping to [0, 1] removes, as in
            `adv-lib`. Otherwise only the iterate is clipped, as in foolbox (the paper has no pixel
            range). Smaller perturbations where many pixels are black or white: on MNIST by .8 % in
            the mean.

    Defaults: overshoot .02 and no limit from the paper; 50 steps and 10 candidates from
    ``bethgelab/foolbox``.

    Raises:
        UserError: a radius that is not above 0, no step, or fewer than two candidates.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "candidates"),
        joined_later=("clip_sum",),
        passes="2 * steps * candidates",
        norm="l2",
        float32_only=True,  # ends on the decision boundary, where rounding decides the label
    )

    def __init__(
        self,
        *,
        radius: Radius | None = None,
        steps: Count = 50,
        candidates: Several = 10,
        overshoot: NonNegative = 0.02,
        clip_sum: bool = False,
    ) -> None:
        self.radius = radius
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
            dual_norm=_norms,
            steepest=direction,
            longest=images.shape[1:].numel() ** 0.5,
        )
        return result if self.radius is None else project(result, images, self.radius)


def _norms(slopes: Tensor) -> Tensor:
    return slopes.flatten(1).norm(dim=1)
