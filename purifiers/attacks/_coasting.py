"""The inner minimisation of C&W-L2: Adam that asks the model only where its answer matters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks._adam import BETA1, BETA2, EPSILON
from purifiers.attacks._tanh import hinge, to_image, to_tanh
from purifiers.core.target import Target, finite, input_gradient

# nlcarlini/nn_robust_attacks: progress is looked at ten times, and less than .01 % is none
CHECKS, FLAT = 10, 0.9999
# our choice: Adam's first steps go uphill and a few tell nothing
FEWEST_STEPS_BETWEEN_CHECKS = 20
# our choice: how far to look ahead on an image's first coast; costs passes, changes no iterate
FIRST_LOOK = 16


@dataclass
class Iterate:
    """Where Adam is, one row per image, after ``clock`` (n,) steps."""

    w: Tensor
    first: Tensor
    second: Tensor
    clock: Tensor

    @classmethod
    def start(cls, w: Tensor) -> Iterate:
        clock = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        return cls(w, torch.zeros_like(w), torch.zeros_like(w), clock)

    def __getitem__(self, rows: Tensor | slice) -> Iterate:
        """These rows: a copy, or for a slice a view that :meth:`step` moves in place."""
        return Iterate(self.w[rows], self.first[rows], self.second[rows], self.clock[rows])

    def __setitem__(self, rows: Tensor, other: Iterate) -> None:
        self.w[rows], self.first[rows] = other.w, other.first
        self.second[rows], self.clock[rows] = other.second, other.clock

    def step(self, slope: Tensor, learning_rate: float) -> None:
        """One step of Adam (Kingma & Ba 2015, algorithm 1) in place, each row by its own clock."""
        self.clock += 1
        self.first.lerp_(slope, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
        first, second = (_bias_correction(beta, self.clock) for beta in (BETA1, BETA2))
        scale = (self.second / second).sqrt_().add_(EPSILON).mul_(first)
        self.w.addcdiv_(self.first, scale, value=-learning_rate)


class Descent:
    """Adam for one value of c per image, improving ``best`` and ``distance`` in place.

    While an image's hinge is above 0 it is *pushed*: every step takes a forward and a backward
    pass. Where the hinge is 0 it *coasts*: only the distance decides where Adam goes, and that
    needs no model. So a coasting image is classified where its last coast ended, then at growing
    distances, and once the hinge is back, bisection finds the first iterate with it, from where
    it is pushed again. These are plain Adam's iterates as long as a path that is back across the
    boundary stays there until it is pushed, and every image that is kept was classified itself.
    A random model is asked at every step.

    Args:
        constant: c per image (n,).
        best: the closest misclassified images so far (n, C, H, W).
        distance: their squared distances (n,), infinite where there is none.
        abort_early: give an image up when it was not misclassified under this c and the objective
            has stopped falling. Images that were misclassified always make all steps, as do all
            images of a random model, whose objective goes up and down by itself.
    """

    def __init__(
        self,
        target: Target,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        *,
        constant: Tensor,
        best: Tensor,
        distance: Tensor,
        steps: int,
        learning_rate: float,
        confidence: float,
        abort_early: bool,
    ) -> None:
        self.target, self.labels, self.indices = target, labels, indices
        self.constant, self.best, self.distance = constant, best, distance
        self.steps, self.learning_rate, self.hinge = steps, learning_rate, hinge(confidence)
        self.path = Iterate.start(to_tanh(images))
        # not quite ``images``: so that the distance's gradient begins at 0
        self.start = to_image(self.path.w)
        self.solved = torch.zeros_like(distance, dtype=torch.bool)
        self.pushed = distance > 0
        self.coasting = torch.zeros_like(self.pushed)
        self.began = torch.zeros_like(self.path.clock)
        self.look = torch.full_like(self.path.clock, FIRST_LOOK)
        # the next clock at which the hinge is known to be back; none is known at ``steps``
        self.wall = torch.full_like(self.path.clock, steps)
        self.patient = target.stochastic or not abort_early
        self.interval = max(steps // CHECKS, FEWEST_STEPS_BETWEEN_CHECKS)
        self.objective = torch.full_like(distance, float("inf"))

    def run(self) -> Tensor:
        """Whether each image was ever misclassified by the confidence asked for (n,)."""
        while True:
            pushed, coasting = self.pushed.nonzero().flatten(), self.coasting.nonzero().flatten()
            if not len(pushed) and not len(coasting):
                return self.solved
            if len(pushed):
                self._push(pushed)
            if len(coasting):
                self._coast(coasting)

    def _push(self, rows: Tensor) -> None:
        """Evaluate these images and let those whose hinge is above 0 make a step."""
        x, labels = to_image(self.path.w[rows]), self.labels[rows]
        indices = self.indices[rows.to(self.indices.device)]
        slope, logits, losses = input_gradient(self.target, x, labels, indices, self.hinge)
        lengths = self._record(rows, x, logits, losses)
        ended = (self.path.clock[rows] == self.steps - 1) | (self.distance[rows] == 0)
        ended |= self._stalled(rows, lengths + self.constant[rows] * losses)
        active = losses > 0
        self.pushed[rows], self.coasting[rows] = active & ~ended, ~active & ~ended
        self.began[rows], self.wall[rows] = self.path.clock[rows], self.steps
        going = active & ~ended
        rows, slope = rows[going], slope[going]
        here = self.path[rows]
        here.step(self._slope(here.w, rows, slope), self.learning_rate)
        self.path[rows] = here

    def _coast(self, rows: Tensor) -> None:
        """Look ahead on the paths of these images, whose hinge is 0 where they are."""
        clock, wall = self.path.clock[rows], self.wall[rows]
        coasted = clock - self.began[rows]
        onward = torch.where(coasted == 0, self.look[rows], coasted // 2).clamp_min(1)
        onward = torch.minimum(onward, self.steps - 1 - clock)
        jump = torch.where(wall < self.steps, (wall - clock) // 2, onward)
        if self.target.stochastic:
            jump = torch.ones_like(jump)
        jump, order = jump.sort(descending=True)
        rows = rows[order]
        ahead = self.path[rows]
        for made in range(int(jump[0])):
            going = slice(int((jump > made).sum()))
            ahead[going].step(self._slope(ahead.w[going], rows[going]), self.learning_rate)
        x, labels = to_image(ahead.w), self.labels[rows]
        with torch.no_grad():
            logits = finite(self.target(x, self.indices[rows.to(self.indices.device)]))
        losses = self.hinge(logits, labels)
        self._record(rows, x, logits, losses)
        active = losses > 0
        self.wall[rows[active]] = ahead.clock[active]
        self.path[rows[~active]] = ahead[~active]
        ended = self.path.clock[rows] == self.steps - 1
        edge = ~ended & (self.wall[rows] == self.path.clock[rows] + 1)
        self.coasting[rows], self.pushed[rows] = ~ended & ~edge, edge
        rows = rows[edge]
        self.look[rows] = self.path.clock[rows] - self.began[rows]
        here = self.path[rows]
        here.step(self._slope(here.w, rows), self.learning_rate)
        self.path[rows] = here

    def _slope(self, w: Tensor, rows: Tensor, slope: Tensor | None = None) -> Tensor:
        """Gradient of the objective by w (n, C, H, W); ``slope`` is the hinge's by the image."""
        x = to_image(w)
        total = 2 * (x - self.start[rows])
        if slope is not None:
            total += self.constant[rows].view(-1, 1, 1, 1) * slope
        return total.mul_(2 * x * (1 - x))

    def _record(self, rows: Tensor, x: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
        """Keep the misclassified images that are the closest so far; squared distances (n,)."""
        lengths = (x - self.start[rows]).square().flatten(1).sum(dim=1)
        indices = self.indices[rows.to(self.indices.device)]
        success = (losses == 0) & ~self.target.unbroken(logits, x, self.labels[rows], indices)
        self.solved[rows[success]] = True
        better = success & (lengths < self.distance[rows])
        self.best[rows[better]], self.distance[rows[better]] = x[better], lengths[better]
        return lengths

    def _stalled(self, rows: Tensor, objective: Tensor) -> Tensor:
        """Which images (n,) were never misclassified and get nowhere."""
        due = self.path.clock[rows] % self.interval == 0
        due &= self.path.clock[rows] > 0
        flat = due & ~self.solved[rows] & (objective > FLAT * self.objective[rows])
        self.objective[rows[due]] = objective[due]
        return flat & (not self.patient)


def _bias_correction(beta: float, clock: Tensor) -> Tensor:
    """1 - beta ** clock, without the rounding of a number close to 1."""
    return -torch.expm1(math.log(beta) * clock).view(-1, 1, 1, 1)
