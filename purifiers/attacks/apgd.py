"""Auto-PGD in the L-infinity ball: PGD with adaptive step sizes (Croce & Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purifiers.attacks._losses import cross_entropy, margin
from purifiers.core import noise
from purifiers.core.active import ActiveSet, active_set, assign
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, Fraction
from purifiers.core.target import Target, input_gradient
from purifiers.core.traits import AttackTraits, Rule

# weight of the new step against the last move: alpha of section 3
NEW_SHARE = 0.75
# keeps the DLR losses finite (fra31/auto-attack)
TINY = 1e-12


class Apgd(Attack):
    """Signed steps with momentum and a step size per image (section 3, algorithm 1).

    The step size begins at 2 eps and is halved when the loss of an image has risen too rarely.

    The implementation breaks the images that ``fra31/auto-attack``'s APGD breaks. A misclassified
    point is therefore preferred to any other, whatever their losses, and an image that is
    misclassified from the start counts as broken. Where that package deviates from the paper, this
    follows the paper, except for the rounding of :func:`checkpoints`. The comparison with rho is
    strict, and the first step of a window is compared with its starting point.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        steps: steps per run; a run computes one gradient more.
        loss: ``"ce"`` (cross entropy), ``"cw"`` (difference between the largest wrong logit and the
            true one; Carlini & Wagner 2017; APGD-CW of Croce et al. 2022), or the difference of
            logits ratio of section 4, ``"dlr"`` or ``"dlr_targeted"``.
        targets: number of target classes of ``"dlr_targeted"``, likeliest first, at most all but
            the true one; 1 with the other losses.
        restarts: runs (per target class), each from a new random start.
        rho: fraction of a window's steps that must raise the loss to keep the step size.
        every_other: halve each image's step size at least at every other checkpoint, whatever the
            progress. Not in the paper; ``jeromerony/adversarial-library`` behaves so, because the
            loss it compares with is updated along the way. On 128 MNIST images it breaks about one
            more with 20 steps, and as many with 50.
        stop: ``"never"`` makes all steps of a run; it returns the misclassified point of the
            highest loss, else the point of the highest loss. ``"success"`` returns the first
            misclassified point, as in :class:`purifiers.attacks.pgd.Pgd`. In both cases only
            unbroken images get a further run.

    Defaults: steps, restarts and rho from the paper and ``fra31/auto-attack``, whose APGD-T is
    ``loss="dlr_targeted", targets=9``; eps 8/255 as in its CIFAR-10 tables; ``stop`` is our choice.
    """

    traits = AttackTraits(
        version=1,
        budget=("steps", "targets", "restarts"),
        # upper bound: only unbroken images get a further target class or restart
        passes="1 + 3 * (steps + 1) * targets * restarts",
        rules=(
            Rule(
                when={"loss": ("ce", "cw", "dlr")},
                holds="targets == 1",
                text=(
                    "targets is {targets}, but only loss 'dlr_targeted' has targets; set targets "
                    "to 1 or change the loss"
                ),
            ),
        ),
    )

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        steps: Count = 100,
        loss: Literal["ce", "cw", "dlr", "dlr_targeted"] = "ce",
        targets: Count = 1,
        restarts: Count = 1,
        rho: Fraction = 0.75,
        every_other: bool = False,
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.steps = steps
        self.loss = loss
        self.targets = targets
        self.restarts = restarts
        self.rho = rho
        self.every_other = every_other
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: fewer classes than the loss needs.
        """
        if not len(images):
            return images.clone()
        with torch.no_grad():
            logits = finite(target(images, indices))
        classes, needed = logits.shape[1], LOSSES[self.loss][1]
        if classes < needed:
            raise UserError(
                f"apgd: {classes} classes, but loss {self.loss!r} needs {needed}; choose loss 'ce'"
            )
        unbroken = target.unbroken(logits, images, labels, indices)
        best = _BestPoints(images.clone(), torch.full_like(logits[:, 0], -torch.inf), ~unbroken)
        rivals = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
        ranks = [r for r in range(min(self.targets, classes - 1)) for _ in range(self.restarts)]
        for run, rank in enumerate(ranks):
            rows = torch.arange(len(images))
            if run > 0 or self.stop == "success":
                rows = (~best.broken).nonzero().flatten().to(rows.device)
            if not len(rows):
                break
            row_indices, rows = indices[rows.to(indices.device)], rows.to(images.device)
            clean = images[rows]
            start = random_start(clean, self.eps, seed, row_indices, run)
            aims = labels[rows] * classes + rivals[rows, rank]
            climb = _Climb(rows, labels[rows], aims, clean, start, self.eps)
            self._run(target, climb, row_indices, classes, best)
        return best.points

    def _run(
        self, target: Target, climb: _Climb, indices: Tensor, classes: int, best: _BestPoints
    ) -> None:
        """Make one run from one start and update ``best``."""
        marks, last = checkpoints(self.steps), 0
        active = active_set(climb.current, indices)

        def loss(logits: Tensor, aims: Tensor) -> Tensor:
            return LOSSES[self.loss][0](logits, aims // classes, aims % classes)

        for step in range(self.steps + 1):
            if step > 0:
                climb.move(NEW_SHARE if step > 1 else 1.0)
            gradient, logits, losses = input_gradient(
                target, climb.current, climb.aims, active.indices, loss
            )
            climb.record(gradient, losses)
            unbroken = target.unbroken(logits, climb.current, climb.labels, active.indices)
            best.add_broken(climb.rows, climb.current, climb.loss, active.only(~unbroken))
            kept = active.update(unbroken) if self.stop == "success" else None
            if kept is not None:
                climb.keep(active, kept)
                if not len(active.rows):
                    return
            if step in marks:
                climb.adapt(self.rho * (step - last), self.every_other and step > 0)
                last = step
        best.add_unbroken(climb.rows, climb.peak, climb.peak_loss)


@dataclass
class _BestPoints:
    """Best point of each image over all runs.

    Attributes:
        points: (n, C, H, W).
        losses: losses of the points (n,), minus infinity for the clean image.
        broken: whether the point is misclassified (n,).
    """

    points: Tensor
    losses: Tensor
    broken: Tensor

    def add_broken(self, rows: Tensor, points: Tensor, losses: Tensor, where: Tensor) -> None:
        """Store the misclassified points that are the first of their image or have a higher loss.

        Args:
            rows: positions of the images, int64 (k,).
            points, losses: (k, C, H, W) and (k,).
            where: which of them are misclassified, bool (k,).
        """
        broken = self.broken[rows]
        self._store(rows, points, losses, where & (~broken | (losses > self.losses[rows])))
        self.broken[rows] = broken | where

    def add_unbroken(self, rows: Tensor, points: Tensor, losses: Tensor) -> None:
        """Store the points of a higher loss of those images that are not broken."""
        self._store(rows, points, losses, ~self.broken[rows] & (losses > self.losses[rows]))

    def _store(self, rows: Tensor, points: Tensor, losses: Tensor, better: Tensor) -> None:
        assign(self.points, rows, better, points)
        assign(self.losses, rows, better, losses)


class _Climb:
    """State of one run: tensors with one row per active image.

    Attributes:
        rows: positions of the images in the batch.
        aims: label * classes + target class, as one number, because the target may split and repeat
            a batch before it reaches the loss.
        peak: point of the highest loss so far, with ``peak_loss`` and ``peak_gradient`` (the
            paper's x_max and f_max).
        rises: number of steps since the last checkpoint that raised the loss.
        checked: ``peak_loss`` at the last checkpoint.
        halved: whether the last checkpoint halved the step size.
    """

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        aims: Tensor,
        images: Tensor,
        start: Tensor,
        eps: float,
    ) -> None:
        self.rows, self.labels, self.aims = rows, labels, aims
        self.lower, self.upper = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
        self.current, self.previous, self.peak = start, start, start.clone()
        self.gradient, self.peak_gradient = torch.zeros_like(start), torch.zeros_like(start)
        self.step_size = start.new_full((len(rows), 1, 1, 1), 2 * eps)
        self.loss = start.new_full((len(rows),), torch.inf)  # the start is not a rise
        self.peak_loss = self.checked = -self.loss
        self.rises = torch.zeros_like(rows)
        self.halved = torch.zeros_like(rows, dtype=torch.bool)

    def move(self, share: float) -> None:
        """Step along the gradient's sign, average with the last move, and project both."""
        ahead = self.gradient.sign().mul_(self.step_size).add_(self.current)
        torch.clamp(ahead, self.lower, self.upper, out=ahead)
        rest = 1.0 - share  # current + share * (ahead - current) + rest * (current - previous)
        ahead.mul_(share).add_(self.current, alpha=2 * rest).sub_(self.previous, alpha=rest)
        torch.clamp(ahead, self.lower, self.upper, out=ahead)
        self.previous, self.current = self.current, ahead

    def record(self, gradient: Tensor, loss: Tensor) -> None:
        """Store the gradient and the loss (n,) of the current points."""
        self.rises = self.rises + (loss > self.loss)
        self.gradient, self.loss = gradient, loss
        higher = loss > self.peak_loss
        spread = higher.view(-1, 1, 1, 1)
        torch.where(spread, self.current, self.peak, out=self.peak)
        torch.where(spread, gradient, self.peak_gradient, out=self.peak_gradient)
        self.peak_loss = torch.where(higher, loss, self.peak_loss)

    def adapt(self, needed: float, in_turn: bool) -> None:
        """Halve the step size of stalled images and return them to their peak.

        An image has stalled if fewer than ``needed`` steps raised the loss. It has also stalled if
        the last checkpoint did not halve its step size and either the peak has not risen since or
        ``in_turn`` is set.
        """
        stalled = self.rises < needed
        stalled |= ~self.halved & ((self.peak_loss <= self.checked) | in_turn)
        spread = stalled.view(-1, 1, 1, 1)
        self.step_size = torch.where(spread, self.step_size / 2, self.step_size)
        self.current = torch.where(spread, self.peak, self.current)
        self.gradient = torch.where(spread, self.peak_gradient, self.gradient)
        self.loss = torch.where(stalled, self.peak_loss, self.loss)
        self.rises = torch.zeros_like(self.rises)
        self.halved, self.checked = stalled, self.peak_loss

    def keep(self, active: ActiveSet, kept: Tensor) -> None:
        """Drop all rows but those at the positions ``kept``."""
        names, tensors = zip(*vars(self).items(), strict=True)
        vars(self).update(zip(names, active.reduce(kept, *tensors), strict=True))


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps at which step sizes are adapted, beginning with 0.

    The windows between them begin with .22 of the steps and shrink by .03 down to .06 (section 3).
    Each window is rounded down to at least one step, as in ``fra31/auto-attack``. The paper rounds
    their sum up. Both give the same for 100 steps (0, 22, 41, 57, 70, 80, 87, 93, 99); with 20
    steps the paper's rounding breaks about 4 images in 1000 fewer.
    """
    width, less, least = (max(percent * steps // 100, 1) for percent in (22, 3, 6))
    marks = [0]
    while marks[-1] + width <= steps:
        marks.append(marks[-1] + width)
        width = max(width - less, least)
    return tuple(marks)


def random_start(images: Tensor, eps: float, seed: int, indices: Tensor, run: int) -> Tensor:
    """Uniform noise, scaled per image to touch the eps ball, clipped to [0, 1].

    As in ``fra31/auto-attack``; set by (seed, index, run).
    """
    shift = noise.uniform(seed, indices, images.shape[1:], low=-1.0, tag=f"apgd {run}")
    shift = shift / shift.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
    return (images + eps * shift.to(images.device)).clamp_(0.0, 1.0)


def ce(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Cross entropy (n,)."""
    return cross_entropy(logits, labels)


def cw(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Difference of logits (n,): max_{i != y} z_i - z_y."""
    return -margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Difference of logits ratio (n,): -(z_y - max_{i != y} z_i) / (z_1st - z_3rd)."""
    first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
    return -margin(logits, labels) / (first - third + TINY)


def dlr_targeted(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Targeted difference of logits ratio (n,): -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2)."""
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(dim=1)
    own, aimed = logits.gather(1, torch.stack([labels, rivals], dim=1)).unbind(dim=1)
    return (aimed - own) / (first - (third + fourth) / 2 + TINY)


# loss to its function and the smallest number of classes
LOSSES = {"ce": (ce, 2), "cw": (cw, 2), "dlr": (dlr, 3), "dlr_targeted": (dlr_targeted, 4)}
