"""Copy this file to <name>.py, rename the class to the CamelCase of <name>, and say what it is.

The first line above becomes the attack's summary: name, norm, authors, year.
"""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits


class Template(Attack):
    """Gradient ascent with signed steps: what it does, with section or equation.

    Args:
        eps: L-infinity radius on the [0, 1] scale. Default: say where it comes from (our choice).
        steps: number of steps (our choice).
    """

    traits = AttackTraits(
        version=1,  # raise it whenever the output changes: stored results are then made again
        budget=("steps",),  # parameters a smaller scale may lower: sizes and budgets only
        passes="3 * steps",  # cost per image in forward passes; a forward and backward is 3
    )

    def __init__(self, *, eps: Length = "8/255", steps: int = 4) -> None:
        self.eps = eps
        self.steps = steps

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1].

        ``target(images, indices)`` gives logits and belongs to somebody else: take gradients
        with ``input_gradient`` only. Random numbers come from ``purifiers.core.noise`` with
        ``seed`` and ``indices``, so that an image's noise never depends on its batch.
        """
        adversarial = images
        for _ in range(self.steps):
            gradient, _, _ = input_gradient(target, adversarial, labels, indices, cross_entropy)
            adversarial = adversarial + self.eps / self.steps * gradient.sign()
            adversarial = adversarial.clamp(images - self.eps, images + self.eps).clamp(0.0, 1.0)
        return adversarial
