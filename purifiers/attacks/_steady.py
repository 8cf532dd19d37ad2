"""Inner minimisation of C&W-L2 on a device: plain Adam, without a look at any value."""

from __future__ import annotations

from torch import Tensor

from purifiers.attacks._coasting import FLAT, Descent
from purifiers.attacks._tanh import to_image
from purifiers.core.active import active_set, assign
from purifiers.core.target import input_gradient


class SteadyDescent(Descent):
    """Run Adam as :class:`purifiers.attacks._coasting.Descent` does, with a pass at every step.

    The images that coast there have a hinge loss of 0 here, whose gradient is zero.
    """

    def run(self) -> Tensor:
        """Minimise; return which images were misclassified with the required confidence (n,)."""
        active = active_set(self.path.w, self.indices)
        path, going = self.path, self.pushed
        labels, constant, start, objective = self.labels, self.constant, self.start, self.objective
        for step in range(self.steps):
            kept = active.update(going)
            if kept is not None:
                w, first, second, clock, going, labels, constant, start, objective = active.reduce(
                    kept, *vars(path).values(), going, labels, constant, start, objective
                )
                path = type(path)(w, first, second, clock)
                if not len(active.rows):
                    break
            x, rows = to_image(path.w), active.rows
            slope, logits, losses = input_gradient(
                self.target, x, labels, active.indices, self.hinge
            )
            lengths = (x - start).square().flatten(1).sum(dim=1)
            success = (losses == 0) & (~self.solved[rows] | (lengths < self.distance[rows]))
            success = active.only(success)
            success &= ~self.target.unbroken(logits, x, labels, active.indices, success)
            self.solved[rows] = self.solved[rows] | success
            better = success & (lengths < self.distance[rows])
            assign(self.best, rows, better, x)
            assign(self.distance, rows, better, lengths)
            if not self.patient and step and step % self.interval == 0:
                total = lengths + constant * losses
                going = self.solved[rows] | (total <= FLAT * objective)
                objective = total
            total_slope = 2 * (x - start) + constant.view(-1, 1, 1, 1) * slope
            path.step(total_slope.mul_(2 * x * (1 - x)), self.learning_rate)
        return self.solved
