"""Fast gradient sign method: one signed step (Goodfellow, Shlens & Szegedy 2015)."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._linf import ascend, attacked_labels
from purifiers.core.choices import AttackLabels
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class Fgsm(Attack):
    """x' = clip(x + eps * sign(gradient of the cross entropy)), section 4 of the paper.

    Args:
        eps: L-infinity radius on the [0, 1] scale. Default 8/255 from Madry et al. 2018 (CIFAR-10).
        attack_labels: as in :class:`purifiers.attacks.pgd.Pgd`.
    """

    traits = AttackTraits(version=1, passes="3")

    def __init__(self, *, eps: Length = "8/255", attack_labels: AttackLabels = "true") -> None:
        self.eps = eps
        self.attack_labels = attack_labels

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        return ascend(
            target,
            images,
            attacked_labels(target, images, labels, indices, self.attack_labels),
            indices,
            start=images,
            eps=self.eps,
            step_size=self.eps,
            steps=1,
        )
