"""C&W: minimal L2 perturbation by Adam in tanh space (Carlini & Wagner 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from purifiers.attacks._coasting import Descent
from purifiers.attacks._l2 import project
from purifiers.attacks._steady import SteadyDescent
from purifiers.core import active
from purifiers.core.component import Attack
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits


class CwL2(Attack):
    """Minimise ||x' - x||_2^2 + c * max(z_y - max_other z + confidence, 0), x' = (tanh(w) + 1) / 2.

    Section VI.A of the paper, untargeted, with a binary search over c for each image. The smallest
    misclassified iterate of an image is returned. Attribute ``failed`` holds the indices of those
    images of the last call that have none.

    Args:
        steps: Adam steps per value of c.
        search_steps: values of c per image.
        initial_const: first c.
        learning_rate: Adam's learning rate, in w.
        confidence: margin kappa by which another class must win.
        abort_early: abandon a value of c under which an image was not misclassified once the
            objective falls by less than .01 % in a tenth of the steps (at least 20). The authors,
            cleverhans and Foolbox check the sum over the batch and also stop images that are
            returning to the boundary, which increases the distance. Here the rule is per image and
            exempts those.
        max_l2: project the result onto the L2 ball of this radius around the image, which may undo
            the success; ``None`` for no limit.
        on_failure: ``"original"`` returns the image itself when no iterate was misclassified.
            ``"foolbox_zero"`` returns a black image, which is then projected like the others.
            ``bethgelab/foolbox`` does this, and so do the results of papers that use it; it is not
            an attack.

    Defaults: 9 x 1000 steps, c .001, learning rate .01, confidence 0 and the early abort from the
    authors' code (``nlcarlini/nn_robust_attacks``; 10000 steps there); the other two are our
    choice.
    """

    traits = AttackTraits(
        version=2,
        budget=("steps", "search_steps"),
        passes="3 * steps * search_steps",
        norm="l2",
        float32_only=True,  # ends on the decision boundary, where rounding decides the label
    )

    def __init__(
        self,
        *,
        steps: Count = 1000,
        search_steps: Count = 9,
        initial_const: Positive = 0.001,
        learning_rate: Positive = 0.01,
        confidence: NonNegative = 0.0,
        abort_early: bool = True,
        max_l2: Positive | None = None,
        on_failure: Literal["original", "foolbox_zero"] = "original",
    ) -> None:
        self.steps = steps
        self.search_steps = search_steps
        self.initial_const = initial_const
        self.learning_rate = learning_rate
        self.confidence = confidence
        self.abort_early = abort_early
        self.max_l2 = max_l2
        self.on_failure = on_failure
        self.failed: tuple[int, ...] = ()

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        best = images.clone() if self.on_failure == "original" else torch.zeros_like(images)
        distance = images.new_full((len(images),), float("inf"))
        constant = torch.full_like(distance, self.initial_const)
        low, high = torch.zeros_like(distance), torch.full_like(distance, float("inf"))
        # coasting saves passes, but the host must see how far each image may coast
        minimise = Descent if active.reads_are_free(images.device) else SteadyDescent
        for _ in range(self.search_steps if len(images) else 0):
            descent = minimise(
                target,
                images,
                labels,
                indices,
                constant=constant,
                best=best,
                distance=distance,
                steps=self.steps,
                learning_rate=self.learning_rate,
                confidence=self.confidence,
                abort_early=self.abort_early,
            )
            solved = descent.run()
            low, high = torch.where(solved, low, constant), torch.where(solved, constant, high)
            constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
        self.failed = tuple(indices[distance.isinf().to(indices.device)].tolist())
        return best if self.max_l2 is None else project(best, images, self.max_l2)
