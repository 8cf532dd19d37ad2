"""AutoAttack, L2: the parameter-free ensemble (Croce & Hein 2020), from its own package."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from purifiers.attacks._autoattack import Ensemble
from purifiers.core.errors import UserError
from purifiers.core.numbers import Radius
from purifiers.core.target import Target

# Square's first noise is a grid of 5 x 5 tiles
SMALLEST = 5


class AutoattackL2(Ensemble):
    """The members of :class:`purifiers.attacks.autoattack.Autoattack` in their L2 form.

    Its remarks on unbroken images, batches and random targets apply here too.

    Args:
        radius: radius of the L2 ball, over all pixels of an image on the [0, 1] scale.
        version, apgd_steps, fab_steps, targets, square_queries: as in that class.

    Defaults: radius .5 as in the L2 tables of the paper and RobustBench on CIFAR-10; the others as
    in L-infinity.
    """

    traits = Ensemble.traits.replace(version=1, norm="l2")

    def __init__(self, *, radius: Radius = 0.5, **common: Any) -> None:
        self.radius = radius
        super().__init__("autoattack_l2", self.radius, **common)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: images of fewer than 5 x 5 pixels, or fewer than 4 classes.
        """
        if min(images.shape[2:]) < SMALLEST:
            shape = "x".join(map(str, images.shape[2:]))
            raise UserError(
                f"autoattack_l2: images are {shape}, but its Square attack needs at least 5x5; "
                "use pgd_l2 or larger images"
            )
        return super().perturb(target, images, labels, seed, indices)
