"""Adam with one optimiser state per image, from which images can be dropped."""

from __future__ import annotations

import torch
from torch import Tensor

# the paper's defaults (Kingma & Ba 2015, algorithm 1)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) applied to each row of a batch on its own.

    Args:
        like: the optimised variables, (n, ...).
        learning_rate: size of the first step in every coordinate.
    """

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._steps = 0

    def step(self, gradient: Tensor) -> Tensor:
        """Return the update (n, ...) to add to the variables for a descent along ``gradient``."""
        self._steps += 1
        self._first.lerp_(gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = (self._second / (1 - BETA2**self._steps)).sqrt_().add_(EPSILON)
        return (self._first / scale).mul_(-self.learning_rate / (1 - BETA1**self._steps))

    @property
    def state(self) -> list[Tensor]:
        """Estimates of both moments, each (n, ...); assign some of their rows to drop others."""
        return [self._first, self._second]

    @state.setter
    def state(self, moments: list[Tensor]) -> None:
        self._first, self._second = moments
