"""C&W in an L-infinity ball: gradient descent on the margin, tanh space (Carlini & Wagner 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._losses import margin
from purifiers.attacks._tanh import to_image, to_tanh
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits

# CarliniLInfMethod's defaults: the first rate and four halvings, or five doublings
TRIALS, DOUBLINGS = 5, 5


class CwLinf(Attack):
    """Minimise max(z_y - max_other z + confidence, 0) inside the L-infinity ball of radius eps.

    The variable is that of section V.B; its box is the ball clipped to [0, 1]. Plain gradient
    descent, with a line search over the rate per image and step: the rate is halved until the loss
    falls, at most four times. If the loss falls at once, the rate is doubled while it continues to
    fall, at most five times. An image stops when its loss reaches 0. An image whose loss never does
    is returned unchanged, and attribute ``failed`` holds the indices of such images of the last
    call.

    This is ``CarliniLInfMethod`` of ART 1.4.1 (``Trusted-AI/adversarial-robustness-toolbox``; later
    versions are another attack), which the authors of IDFR used. Three things differ from ART: a
    tie of the two largest logits is not a success, an accepted step is not evaluated twice, and the
    model must return logits.

    An image that stops at its first success is weak against anything that was not attacked, such as
    a purifier; raise ``confidence`` there. Pixels at 0 or 1 hardly move, because tanh is flat
    there.

    Args:
        eps: L-infinity radius on the [0, 1] scale, above 0.
        steps: largest number of gradients.
        learning_rate: first rate, in w.
        confidence: margin kappa by which another class must win.

    Defaults: steps, learning rate and confidence are ART's; eps 8/255 is our choice (.3 there).

    Raises:
        UserError: no step, or eps 0.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps",),
        passes="9 * steps + 1",
        float32_only=True,  # ends on the decision boundary, where rounding decides the label
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        steps: Count = 10,
        learning_rate: Positive = 0.01,
        confidence: NonNegative = 0.0,
    ) -> None:
        self.eps = eps
        if not self.eps > 0.0:
            raise UserError(f"cw_linf: eps is {self.eps:g}: choose a radius above 0")
        self.steps = steps
        self.learning_rate = learning_rate
        self.confidence = confidence
        self.failed: tuple[int, ...] = ()

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        result = images.clone()
        descent = _Descent(self, target, images, labels, indices)
        rows = torch.arange(len(images), device=images.device)
        if len(images):
            rows = rows[~descent.evaluate(rows, images)[1]]
        for _ in range(self.steps):
            if not len(rows):
                break
            broken = descent.step(rows)
            result[rows[broken]] = descent.current[rows[broken]]
            rows = rows[~broken]
        self.failed = tuple(indices[rows.to(indices.device)].tolist())
        return result


class _Descent:
    """Gradient descent with a line search per image."""

    def __init__(
        self, attack: CwLinf, target: Target, images: Tensor, labels: Tensor, indices: Tensor
    ) -> None:
        self.target, self.labels, self.indices = target, labels, indices
        self.confidence = attack.confidence
        self.low = (images - attack.eps).clamp_min(0.0)
        self.high = (images + attack.eps).clamp_max(1.0)
        self.w = to_tanh(images, self.low, self.high)
        self.current = images.clone()
        self.rate = torch.full((len(images),), attack.learning_rate, device=images.device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The hinge loss (n,) without its bound of 0: an image goes on until the original model
        confirms its success."""
        return margin(logits, labels) + self.confidence

    def evaluate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,), and which images are misclassified by the required margin (n,)."""
        labels, indices = self.labels[rows], self.indices[rows.to(self.indices.device)]
        with torch.no_grad():
            logits = finite(self.target(x, indices))
        losses = self.loss(logits, labels)
        return losses, (losses <= 0) & ~self.target.unbroken(logits, x, labels, indices)

    def step(self, rows: Tensor) -> Tensor:
        """Move these images down their gradients; return which are misclassified then (n,)."""
        slope, _, best = input_gradient(
            self.target,
            self.current[rows],
            self.labels[rows],
            self.indices[rows.to(self.indices.device)],
            self.loss,
        )
        inside = to_image(self.w[rows])
        # dx/dw = 2 inside (1 - inside) times the box's width
        direction = slope * (self.low[rows] - self.high[rows]) * 2 * inside * (1 - inside)
        start, broken = self.w[rows], torch.zeros_like(rows, dtype=torch.bool)

        def attempt(some: Tensor) -> tuple[Tensor, Tensor]:
            """Step some images at their rates and keep the steps that lower the loss.

            Args:
                some: positions in ``rows``.

            Returns:
                Which losses fell (n,) and which did not rise (n,).
            """
            active = rows[some]
            w = start[some] + self.rate[active].view(-1, 1, 1, 1) * direction[some]
            low, high = self.low[active], self.high[active]
            x = (low + (high - low) * to_image(w)).clamp(low, high)
            losses, success = self.evaluate(active, x)
            fell, flat = losses < best[some], losses <= best[some]
            better, where = some[fell], active[fell]
            best[better], broken[better] = losses[fell], success[fell]
            self.w[where], self.current[where] = w[fell], x[fell]
            return fell, flat

        trying = torch.arange(len(rows), device=rows.device)
        fell, _ = attempt(trying)
        at_once, trying = trying[fell], trying[~fell]
        for _ in range(TRIALS - 1):
            if not len(trying):
                break
            self.rate[rows[trying]] /= 2
            fell, _ = attempt(trying)
            trying = trying[~fell]
        doubled = at_once
        for _ in range(DOUBLINGS):
            doubled = doubled[~broken[doubled]]
            if not len(doubled):
                break
            self.rate[rows[doubled]] *= 2
            _, flat = attempt(doubled)
            doubled = doubled[flat]
        self.rate[rows[at_once]] /= 2
        return broken
