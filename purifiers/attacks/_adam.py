"""Adam on a batch of images that may lose rows."""

from __future__ import annotations

import torch
from torch import Tensor

# the usual constants (Kingma & Ba 2015, algorithm 1)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); every row of a batch is optimised by itself.

    Args:
        like: what is optimised (n, ...).
        learning_rate: length of the first step in every coordinate.
    """

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._steps = 0

    def step(self, gradient: Tensor) -> Tensor:
        """What to add (n, ...) to get down along ``gradient``."""
        self._steps += 1
        self._first.lerp_(gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = (self._second / (1 - BETA2**self._steps)).sqrt_().add_(EPSILON)
        return (self._first / scale).mul_(-self.learning_rate / (1 - BETA1**self._steps))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only (a mask, or their numbers)."""
        self._first, self._second = self._first[rows], self._second[rows]
