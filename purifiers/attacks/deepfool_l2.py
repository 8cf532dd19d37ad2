"""DeepFool in the L2 norm (Moosavi-Dezfooli, Fawzi & Frossard 2016)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._deepfool import check_deepfool, deepfool
from purifiers.attacks._l2 import direction, project
from purifiers.core.component import Attack
from purifiers.core.numbers import Radius
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class DeepfoolL2(Attack):
    """Step to the nearest linearised class boundary until the label is lost.

    Algorithm 2: the step towards class k is |f_k| / ||w_k||_2^2 * w_k, f and w being value and
    gradient of the logit difference to the true class. Images that are misclassified already
    come back unchanged.

    Args:
        radius: the result is projected onto the L2 ball of this radius around the image;
            ``None`` for the minimal perturbation whatever its size. An image that needs more is
            shortened, not dropped: it then usually keeps its label.
        steps: most linearisations.
        candidates: classes looked at, the true one included; the others are those with the
            largest logits on the clean image.
        overshoot: the whole perturbation is applied 1 + overshoot times (the paper's eta).
        clip_sum: what the range of pixels cuts off leaves the sum of steps, as in `adv-lib`, in
            place of the image that is looked at alone, as in foolbox (the paper knows no range).
            Nearer where many pixels are black or white: on MNIST by .8 % in the mean.

    Defaults: overshoot .02 and no limit are the paper's; 50 steps and 10 candidates as in
    ``bethgelab/foolbox``.

    Raises:
        UserError: a radius that is not above 0, no step, or less than two candidates.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "candidates"),
        joined_later=("clip_sum",),
        passes="2 * steps * candidates",
        norm="l2",
        float32_only=True,  # ends on the boundary, where rounding decides
    )

    def __init__(
        self,
        *,
        radius: Radius | None = None,
        steps: int = 50,
        candidates: int = 10,
        overshoot: float = 0.02,
        clip_sum: bool = False,
    ) -> None:
        check_deepfool("deepfool_l2", steps, candidates)
        self.radius = radius
        self.steps = steps
        self.candidates = candidates
        self.overshoot = overshoot
        self.clip_sum = clip_sum

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
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
