"""Template of an attack; replace this line by: name, norm, authors, year.

Copy this file to ``<name>.py`` and rename the class to the CamelCase of ``<name>``. No list has to
be edited. The first line of the module docstring is the attack's summary (15 to 120 characters).

The contract tests require of every attack:

- float32 output of the same shape, finite, in [0, 1] and inside the eps or radius ball;
- the same output for the same seed, whatever the batch size (``batch_dependent`` exempts);
- strictly lower accuracy on a small trained network.
"""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._losses import cross_entropy
from purifiers.core.component import Attack
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits


class Template(Attack):
    """Ascend the cross entropy by signed steps (name the section or equation here).

    Args:
        eps: L-infinity radius on the [0, 1] scale; our choice (name the source of each default).
        steps: number of steps; our choice.
    """

    traits = AttackTraits(
        version=1,  # raise it whenever the output changes; stored results are then recomputed
        budget=("steps",),  # parameters that a reduced scale may lower: sizes and budgets only
        passes="3 * steps",  # cost per image in forward passes; forward and backward count 3
        norm="linf",  # of the perturbation: linf, l2, or a name of its own
    )

    def __init__(self, *, eps: Length = "8/255", steps: Count = 4) -> None:
        self.eps = eps
        self.steps = steps

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Args:
            target: ``target(images, indices)`` returns logits (n, classes). Compute gradients with
                ``input_gradient`` only; it leaves the model's parameters alone.
            images: float32 (n, C, H, W) in [0, 1].
            labels: true labels, int64 (n,).
            seed, indices: pass both to ``purifiers.core.noise`` for random numbers, so that an
                image's noise does not depend on its batch.
        """
        adversarial = images
        for _ in range(self.steps):
            gradient, _, _ = input_gradient(target, adversarial, labels, indices, cross_entropy)
            adversarial = adversarial + self.eps / self.steps * gradient.sign()
            adversarial = adversarial.clamp(images - self.eps, images + self.eps).clamp(0.0, 1.0)
        return adversarial
