"""Inner minimisation of C&W-L2: Adam that queries the model only where the hinge may change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from purifiers.attacks._adam import BETA1, BETA2, EPSILON
from purifiers.attacks._tanh import hinge, to_image, to_tanh
from purifiers.core.finite import finite
from purifiers.core.target import Target, input_gradient

# nlcarlini/nn_robust_attacks: ten progress checks; a decrease below .01 % counts as none
CHECKS, FLAT = 10, 0.9999
# our choice: Adam's first steps go uphill, and a few steps show no trend
FEWEST_STEPS_BETWEEN_CHECKS = 20
# our choice: steps of the first look-ahead; it affects the number of passes, never an iterate
FIRST_LOOK = 16


@dataclass
class Iterate:
    """State of Adam, one row per image, after ``clock`` (n,) steps."""

    w: Tensor
    first: Tensor
    second: Tensor
    clock: Tensor

    @classmethod
    def start(cls, w: Tensor) -> Iterate:
        clock = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        return cls(w, torch.zeros_like(w), torch.zeros_like(w), clock)

    def __getitem__(self, rows: Tensor | slice) -> Iterate:
        """Select rows: a copy, or for a slice a view that :meth:`step` updates in place."""
        return Iterate(self.w[rows], self.first[rows], self.second[rows], self.clock[rows])

    def __setitem__(self, rows: Tensor, other: Iterate) -> None:
        self.w[rows], self.first[rows] = other.w, other.first
        self.second[rows], self.clock[rows] = other.second, other.clock

    def step(self, slope: Tensor, learning_rate: float) -> None:
        """Make one Adam step (Kingma & Ba 2015, algorithm 1) in place, by each row's own clock."""
        self.clock += 1
        self.first.lerp_(slope, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
        first, second = (_bias_correction(beta, self.clock) for beta in (BETA1, BETA2))
        scale = (self.second / second).sqrt_().add_(EPSILON).mul_(first)
        self.w.addcdiv_(self.first, scale, value=-learning_rate)


class Descent:
    """Run Adam for one value of c per image and update ``best`` and ``distance`` in place.

    An image is *pushed* while its hinge loss is above 0: each step takes a forward and a backward
    pass. It *coasts* while the hinge loss is 0: only the distance then has a gradient, which needs
    no model.

    A coasting image is classified where its last coast ended, then at growing distances. Once the
    hinge loss is positive again, bisection finds the first such iterate, and pushing resumes there.

    The iterates equal plain Adam's, provided that a path which crosses the boundary back stays
    there until it is pushed. Every stored image was classified itself. A random model is queried at
    every step.

    Args:
        constant: c per image (n,).
        best: closest misclassified images so far (n, C, H, W).
        distance: their squared L2 distances (n,), infinite where there is none.
        abort_early: stop an image that was not misclassified under this c and whose objective
            stopped falling. Images that were misclassified always make all steps. So do all images
            of a random model, whose objective fluctuates by itself.
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
        # differs from ``images`` by rounding, so that the distance's gradient begins at 0
        self.start = to_image(self.path.w)
        self.solved = torch.zeros_like(distance, dtype=torch.bool)
        self.pushed = distance > 0
        self.coasting = torch.zeros_like(self.pushed)
        self.coast_start = torch.zeros_like(self.path.clock)
        self.lookahead = torch.full_like(self.path.clock, FIRST_LOOK)
        # first clock known to have a positive hinge loss; ``steps`` where none is known
        self.return_clock = torch.full_like(self.path.clock, steps)
        self.patient = target.stochastic or not abort_early
        self.interval = max(steps // CHECKS, FEWEST_STEPS_BETWEEN_CHECKS)
        self.objective = torch.full_like(distance, float("inf"))

    def run(self) -> Tensor:
        """Minimise; return which images were misclassified with the required confidence (n,)."""
        while True:
            pushed, coasting = self.pushed.nonzero().flatten(), self.coasting.nonzero().flatten()
            if not len(pushed) and not len(coasting):
                return self.solved
            if len(pushed):
                self._push(pushed)
            if len(coasting):
                self._coast(coasting)

    def _push(self, rows: Tensor) -> None:
        """Evaluate these images and step those whose hinge loss is above 0."""
        x, labels = to_image(self.path.w[rows]), self.labels[rows]
        indices = self.indices[rows.to(self.indices.device)]
        slope, logits, losses = input_gradient(self.target, x, labels, indices, self.hinge)
        lengths = self._record(rows, x, logits, losses)
        ended = (self.path.clock[rows] == self.steps - 1) | (self.distance[rows] == 0)
        ended |= self._stalled(rows, lengths + self.constant[rows] * losses)
        active = losses > 0
        self.pushed[rows], self.coasting[rows] = active & ~ended, ~active & ~ended
        self.coast_start[rows], self.return_clock[rows] = self.path.clock[rows], self.steps
        moving = active & ~ended
        rows, slope = rows[moving], slope[moving]
        state = self.path[rows]
        state.step(self._slope(state.w, rows, slope), self.learning_rate)
        self.path[rows] = state

    def _coast(self, rows: Tensor) -> None:
        """Look ahead on the paths of these images, whose hinge loss is currently 0."""
        clock, return_clock = self.path.clock[rows], self.return_clock[rows]
        coasted = clock - self.coast_start[rows]
        onward = torch.where(coasted == 0, self.lookahead[rows], coasted // 2).clamp_min(1)
        onward = torch.minimum(onward, self.steps - 1 - clock)
        jump = torch.where(return_clock < self.steps, (return_clock - clock) // 2, onward)
        if self.target.stochastic:
            jump = torch.ones_like(jump)
        jump, order = jump.sort(descending=True)
        rows = rows[order]
        ahead = self.path[rows]
        for steps_made in range(int(jump[0])):
            moving = slice(int((jump > steps_made).sum()))
            ahead[moving].step(self._slope(ahead.w[moving], rows[moving]), self.learning_rate)
        x, labels = to_image(ahead.w), self.labels[rows]
        with torch.no_grad():
            logits = finite(self.target(x, self.indices[rows.to(self.indices.device)]))
        losses = self.hinge(logits, labels)
        self._record(rows, x, logits, losses)
        active = losses > 0
        self.return_clock[rows[active]] = ahead.clock[active]
        self.path[rows[~active]] = ahead[~active]
        ended = self.path.clock[rows] == self.steps - 1
        edge = ~ended & (self.return_clock[rows] == self.path.clock[rows] + 1)
        self.coasting[rows], self.pushed[rows] = ~ended & ~edge, edge
        rows = rows[edge]
        self.lookahead[rows] = self.path.clock[rows] - self.coast_start[rows]
        state = self.path[rows]
        state.step(self._slope(state.w, rows), self.learning_rate)
        self.path[rows] = state

    def _slope(self, w: Tensor, rows: Tensor, slope: Tensor | None = None) -> Tensor:
        """Gradient of the objective with respect to w, (n, C, H, W).

        Args:
            slope: gradient of the hinge loss with respect to the images; None where it is zero.
        """
        x = to_image(w)
        total = 2 * (x - self.start[rows])
        if slope is not None:
            total += self.constant[rows].view(-1, 1, 1, 1) * slope
        return total.mul_(2 * x * (1 - x))

    def _record(self, rows: Tensor, x: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
        """Store the closest misclassified images; return the squared distances (n,)."""
        lengths = (x - self.start[rows]).square().flatten(1).sum(dim=1)
        indices = self.indices[rows.to(self.indices.device)]
        success = (losses == 0) & (~self.solved[rows] | (lengths < self.distance[rows]))
        success &= ~self.target.unbroken(logits, x, self.labels[rows], indices, success)
        self.solved[rows[success]] = True
        better = success & (lengths < self.distance[rows])
        self.best[rows[better]], self.distance[rows[better]] = x[better], lengths[better]
        return lengths

    def _stalled(self, rows: Tensor, objective: Tensor) -> Tensor:
        """Select the images (n,) that were never misclassified and no longer make progress."""
        due = self.path.clock[rows] % self.interval == 0
        due &= self.path.clock[rows] > 0
        flat = due & ~self.solved[rows] & (objective > FLAT * self.objective[rows])
        self.objective[rows[due]] = objective[due]
        return flat & (not self.patient)


def _bias_correction(beta: float, clock: Tensor) -> Tensor:
    """1 - beta ** clock, without cancellation close to 1."""
    return -torch.expm1(math.log(beta) * clock).view(-1, 1, 1, 1)
