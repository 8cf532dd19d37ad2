"""Fast gradient sign method: one signed step (Goodfellow, Shlens & Szegedy 2015)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._linf import ascend, check_labels, followed
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class Fgsm(Attack):
    """x' = clip(x + eps * sign(gradient of the cross entropy)), section 4 of the paper.

    Args:
        eps: L-infinity radius on the [0, 1] scale. Default: CIFAR-10's 8/255 of Madry et al. 2018.
        attack_labels: as in :class:`purifiers.attacks.pgd.Pgd`.
    """

    traits = AttackTraits(version=1, passes="3")

    def __init__(self, *, eps: Length = "8/255", attack_labels: str = "true") -> None:
        self.eps = eps
        self.attack_labels = check_labels("fgsm", attack_labels)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        return ascend(
            target,
            images,
            followed(target, images, labels, indices, self.attack_labels),
            indices,
            start=images,
            eps=self.eps,
            step_size=self.eps,
            steps=1,
        )
