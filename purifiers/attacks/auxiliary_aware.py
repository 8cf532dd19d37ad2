"""Auxiliary-aware PGD: fool the classifier and a purifier's detector (Shi et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.attacks._linf import ascend, cross_entropy_gradient, random_start
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, Fraction
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class AuxiliaryAware(Attack):
    """PGD on (1 - trade_off) L_C - trade_off L_D, equation 2 of the AID-Purifier paper.

    L_C is the classifier's cross entropy. L_D is the detector's cross entropy against "clean",
    computed on the attacked image itself, before any purification. The authors' code
    (`yelobean/AIDPurifier`) uses L_C - trade_off L_D: the same family at other trade-offs.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        step_size: step length on the same scale.
        steps: number of steps.
        trade_off: lambda, in [0, 1]: 0 is PGD on the classifier, 1 attacks the detector alone.
        random_start: begin uniformly inside the ball, by (seed, image index); else at the image.

    Defaults: step 1/255, 20 steps and random start from the authors' code; eps 8/255 from the
    paper's data sets other than SVHN; the trade-off is our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="6 * steps",  # the detector costs as much as the classifier, whose layers it uses
        needs=("detector_logit",),
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        step_size: Length = "1/255",
        steps: Count = 20,
        trade_off: Fraction = 0.5,
        random_start: bool = True,
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.trade_off = trade_off
        self.random_start = random_start

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: the target has no detector, or averages signs over its draws; the two
                gradients are weighted by their lengths.
        """
        if target.eot_samples > 1 and target.eot_combine == "sign":
            raise UserError(
                "auxiliary_aware: eot combines draws by sign, but the attack weights gradients by "
                "length; set `combine: mean`"
            )
        start = images
        if self.random_start:
            start = random_start(images, self.eps, seed, indices, tag="auxiliary_aware")
        classifier_gradient = cross_entropy_gradient(target)

        def gradient_of(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
            gradient, logits = classifier_gradient(images, labels, indices)
            if self.trade_off:
                gradient = (1 - self.trade_off) * gradient
                gradient -= self.trade_off * _detector_gradient(target, images)
            return gradient, logits

        return ascend(
            target,
            images,
            labels,
            indices,
            start=start,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            gradient_of=gradient_of,
        )


def _detector_gradient(target: Target, images: Tensor) -> Tensor:
    """Gradient of L_D for each image; softplus is the cross entropy of a logit against 0."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        loss = functional.softplus(target.detector_logit(leaf)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    return finite(gradient, "gradients")
