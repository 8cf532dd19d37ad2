"""Copies of a module's weights at equal distances of its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def numbers_by_step(count: int, steps: int) -> dict[int, int]:
    """Number of each copy, from 0, by the steps made before it.

    The first copy precedes the first step; none is made at the end. With fewer steps than copies,
    several copies are due at one step, and only the last of them is made.

    Args:
        count: copies.
        steps: of the training.
    """
    return {number * steps // count: number for number in range(count)}


def weights_of(module: nn.Module) -> Tensor:
    """All weights of a module in one vector, (number,).

    Torch's ``parameters_to_vector`` refuses weights in channels-last.
    """
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def load_weights(module: nn.Module, weights: Tensor) -> None:
    """Give a module the weights (number,) of :func:`weights_of`."""
    own = list(module.parameters())
    parts = weights.split([weight.numel() for weight in own])
    for weight, values in zip(own, parts, strict=True):
        weight.data.copy_(values.view(weight.shape))
