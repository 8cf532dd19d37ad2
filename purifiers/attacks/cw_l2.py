"""C&W: minimal L2 perturbation by Adam in tanh space (Carlini & Wagner 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks._linf import check_count
from purifiers.attacks._losses import finite, margin
from purifiers.core.component import Attack, Target, input_gradient
from purifiers.core.errors import UserError, did_you_mean

VERSION = 1
BUDGET = ("steps", "search_steps")
PASSES = "3 * steps * search_steps"

FAILURES = ("original", "foolbox_zero")
# nlcarlini/nn_robust_attacks: keeps pixels 0 and 1 at a finite w
SHRINK = 0.999999
# Adam's usual constants (Kingma & Ba 2015), as in the authors' code
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class CwL2(Attack):
    """Minimise ||x' - x||_2^2 + c * max(z_y - max_other z + confidence, 0), x' = (tanh(w) + 1) / 2.

    Section VI.A of the paper, untargeted, with a binary search over c for each image. The
    smallest misclassified iterate of an image is kept. Attribute ``failed`` holds the indices
    of the last call's images for which none was found.

    Args:
        steps: Adam steps per value of c.
        search_steps: values of c tried per image.
        initial_const: first c.
        learning_rate: Adam's, in w.
        confidence: margin kappa by which another class must win.
        max_l2: the result is projected onto the L2 ball of this radius around the image, which
            may lose the success again; ``None`` for no limit.
        on_failure: ``"original"`` returns the image itself when no iterate was misclassified.
            ``"foolbox_zero"`` returns a black image, then projected like the rest: what
            ``bethgelab/foolbox`` does and so what papers built on it report, not an attack.

    Defaults: 9 x 1000 steps, c .001, learning rate .01 and confidence 0 from the authors' code
    (``nlcarlini/nn_robust_attacks``; 10000 steps there); the other two are our choice.
    """

    norm = "l2"

    def __init__(
        self,
        *,
        steps: int = 1000,
        search_steps: int = 9,
        initial_const: float = 0.001,
        learning_rate: float = 0.01,
        confidence: float = 0.0,
        max_l2: float | None = None,
        on_failure: str = "original",
    ) -> None:
        check_count("cw_l2", steps=steps, search_steps=search_steps)
        if on_failure not in FAILURES:
            hint = did_you_mean(on_failure, FAILURES)
            raise UserError(
                f"cw_l2: on_failure is {on_failure!r}, choose one of {', '.join(FAILURES)}{hint}"
            )
        self.steps = steps
        self.search_steps = search_steps
        self.initial_const = initial_const
        self.learning_rate = learning_rate
        self.confidence = confidence
        self.max_l2 = max_l2
        self.on_failure = on_failure
        self.failed: tuple[int, ...] = ()

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        best = images.clone() if self.on_failure == "original" else torch.zeros_like(images)
        distance = images.new_full((len(images),), float("inf"))
        constant = torch.full_like(distance, self.initial_const)
        low, high = torch.zeros_like(distance), torch.full_like(distance, float("inf"))
        for _ in range(self.search_steps if len(images) else 0):
            solved = self._descend(target, images, labels, indices, constant, best, distance)
            low, high = torch.where(solved, low, constant), torch.where(solved, constant, high)
            constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
        self.failed = tuple(indices[distance.isinf().to(indices.device)].tolist())
        if self.max_l2 is None:
            return best
        shift = best - images
        length = shift.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = (self.max_l2 / length).clamp_max(1.0).view(-1, 1, 1, 1)
        return (images + scale * shift).clamp_(0.0, 1.0)

    def _descend(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        constant: Tensor,
        best: Tensor,
        distance: Tensor,
    ) -> Tensor:
        """Run Adam for one c per image, improving ``best`` and its squared ``distance`` in place.

        Returns:
            Whether each image was ever misclassified (n,).
        """
        w = torch.atanh((2 * images - 1) * SHRINK)
        start = _image(w)  # not quite ``images``: so that the distance's gradient begins at 0
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        solved = torch.zeros_like(distance, dtype=torch.bool)
        pushed = ~solved
        for step in range(1, self.steps + 1):
            x = _image(w)
            gap, slope = self._hinge(target, x, labels, indices, pushed)
            pushed = gap + self.confidence > 0
            success = (gap < 0) & ~pushed
            solved |= success
            length = (x - start).square().flatten(1).sum(dim=1)
            better = success & (length < distance)
            best[better], distance[better] = x[better], length[better]
            slope = constant.view(-1, 1, 1, 1) * slope + 2 * (x - start)
            slope *= 2 * x * (1 - x)  # dx/dw
            first.lerp_(slope, 1 - BETA1)
            second.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
            scale = (second / (1 - BETA2**step)).sqrt_().add_(ADAM_EPS)
            w.addcdiv_(first, scale, value=-self.learning_rate / (1 - BETA1**step))
        return solved

    def _hinge(
        self, target: Target, x: Tensor, labels: Tensor, indices: Tensor, pushed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Margin (n,) and the hinge's gradient (n, C, H, W), which is 0 where the hinge is.

        Images whose hinge was 0 at the last step (not ``pushed``) first get a forward only; most
        of them still need no backward.
        """
        gap, slope = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x)
        rest, active = ~pushed, pushed
        if rest.any():
            with torch.no_grad():
                logits = finite(target(x[rest], indices[rest.to(indices.device)]))
            gap[rest] = margin(logits, labels[rest])
            active = pushed | (gap + self.confidence > 0)
        if active.any():
            mine = labels[active]
            slope[active], logits, _ = input_gradient(
                target, x[active], mine, indices[active.to(indices.device)], self._loss
            )
            gap[active] = margin(logits, mine)
        return gap, slope

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.relu(margin(logits, labels) + self.confidence)


def _image(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2
