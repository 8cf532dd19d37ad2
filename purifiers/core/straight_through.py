"""Values of a function without a useful gradient, with the gradient of a surrogate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_gradient_of(values: Tensor, surrogate: Tensor) -> Tensor:
    """``values``, unchanged, whose gradient is that of ``surrogate``.

    With the function's own input as surrogate this is the straight-through estimator (Bengio et
    al. 2013) and BPDA's identity (Athalye et al. 2018, section 4.1).

    Args:
        values: output of the function, of any shape; its own gradient is dropped.
        surrogate: a differentiable approximation of it, of the same shape.
    """
    result: Tensor = _Surrogate.apply(surrogate, values)
    return result


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
