"""DeepFool in the L-infinity norm (Moosavi-Dezfooli, Fawzi & Frossard 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks._linf import check_count
from purifiers.attacks._losses import finite
from purifiers.core.component import Attack, Target
from purifiers.core.errors import UserError
from purifiers.core.numbers import fraction

VERSION = 1
BUDGET = ("steps", "candidates")
PASSES = "2 * steps * candidates"

# LTS4/DeepFool: added to each step. Without it an image with pixels at 0 or 1, which the step
# cannot move, creeps up to the boundary and never crosses it.
MARGIN = 1e-4


class DeepfoolLinf(Attack):
    """Step to the nearest linearised class boundary until the label is lost.

    Algorithm 2 with the steps of section 3.3 for p = infinity: the step towards class k is
    |f_k| / ||w_k||_1 * sign(w_k), f and w being value and gradient of the logit difference
    to the true class. Images that are misclassified already come back unchanged.

    Args:
        eps: L-infinity radius to which the result is clipped, or ``None`` for the minimal
            perturbation whatever its size. An image that needs more than eps is clipped, not
            dropped: it then usually keeps its label.
        steps: most linearisations.
        candidates: classes looked at, the true one included; the others are those with the
            largest logits on the clean image.
        overshoot: the whole perturbation is applied 1 + overshoot times (the paper's eta).

    Defaults: overshoot .02 is the paper's; 50 steps and 10 candidates as in
    ``bethgelab/foolbox``; eps 8/255 is our choice.
    """

    def __init__(
        self,
        *,
        eps: float | str | None = "8/255",
        steps: int = 50,
        candidates: int = 10,
        overshoot: float = 0.02,
    ) -> None:
        check_count("deepfool_linf", steps=steps)
        if candidates < 2:
            raise UserError(
                f"deepfool_linf: candidates is {candidates}, but the true class and at least one "
                "other are needed: 2 or more"
            )
        self.eps = None if eps is None else fraction(eps)
        self.steps = steps
        self.candidates = candidates
        self.overshoot = overshoot

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        result, original, total = images.clone(), images, torch.zeros_like(images)
        rows, current, rivals = torch.arange(len(images), device=images.device), images, labels
        for step in range(self.steps if len(images) else 0):
            leaf, logits = _forward(target, current, indices)
            if step == 0:
                rivals = _strongest(logits.detach(), labels, self.candidates - 1)
            unbroken = logits.argmax(dim=1) == labels
            if not unbroken.all():
                result[rows] = current
                rows, labels, rivals = rows[unbroken], labels[unbroken], rivals[unbroken]
                current, original, total = current[unbroken], original[unbroken], total[unbroken]
                if not len(rows):
                    break
                indices = indices[unbroken.to(indices.device)]
                # a second forward costs less than backwards that include the finished images
                leaf, logits = _forward(target, current, indices)
            total = total + _nearest(leaf, logits, labels, rivals)
            current = (original + (1 + self.overshoot) * total).clamp_(0.0, 1.0)
        result[rows] = current
        return result if self.eps is None else result.clamp(images - self.eps, images + self.eps)


def _forward(target: Target, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        return leaf, finite(target(leaf, indices))


def _strongest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The classes with the largest logits besides the true one, (n, count) or fewer."""
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _nearest(leaf: Tensor, logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """The smallest step (n, C, H, W) onto one of the linearised boundaries."""
    shortest = torch.full_like(logits[:, 0], float("inf")).detach()
    direction = torch.zeros_like(leaf)
    with torch.enable_grad():
        gaps = (logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, rivals)).unbind(dim=1)
    for k, gap in enumerate(gaps, start=1):
        ones = torch.ones_like(gap)
        (slope,) = torch.autograd.grad(gap, leaf, ones, retain_graph=k < len(gaps))
        # 1e-12 (our choice): a flat direction is far away, not a division by zero
        distance = gap.detach() / slope.abs().sum(dim=(1, 2, 3)).clamp_min(1e-12)
        closer = distance < shortest
        shortest = torch.where(closer, distance, shortest)
        direction = torch.where(closer.view(-1, 1, 1, 1), -slope.sign(), direction)
    # no pixel has more than 1 to go, so a longer step means the same
    return direction * (shortest + MARGIN).clamp_max(1.0).view(-1, 1, 1, 1)
