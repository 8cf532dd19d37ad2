"""Gradient of a solved differential equation in memory that its steps do not increase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from purifiers.methods._vp_sde import Step

Predict = Callable[[Tensor, int], Tensor]
"""Images and the number of a step to the predicted noise, both (n, C, H, W)."""
Noise = Callable[[int], Tensor]
"""The number of a step to its standard normal draw, (n, C, H, W); the same at every call."""


class Adjoint(torch.autograd.Function):
    """Solve forward without a graph; solve image and gradient backward (Li et al. 2020).

    Only the final image is kept. The backward pass reverses each step by an Euler step from its
    end, with the same noise. Its image, and so the gradient, differs from the exact one by terms
    that vanish with the step size.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, solve: Callable[[Tensor], Tensor], back: Callable[..., Tensor]
    ) -> Tensor:
        ctx.back = back
        final = solve(images)
        ctx.save_for_backward(final)
        return final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (final,) = ctx.saved_tensors
        return ctx.back(final, gradients[0]), None, None


def solve_back(
    final: Tensor, gradient: Tensor, steps: list[Step], predict: Predict, noise: Noise
) -> Tensor:
    """Gradient with respect to the images that ``steps`` began with.

    Args:
        final: images after the last step, (n, C, H, W).
        gradient: with respect to them.
        steps: of :func:`purifiers.methods._vp_sde.backward_steps`, first to last.
        predict: predicted noise at the end of a step.
        noise: of a step.
    """
    images = final
    for number in reversed(range(len(steps))):
        step = steps[number]
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            predicted = predict(leaf, number)
        (through,) = torch.autograd.grad(predicted, leaf, gradient)
        images = 2.0 * images - step.drift(images, predicted.detach())
        if step.renoise:
            images = images - step.renoise * noise(number)
        gradient = step.drift(gradient, through)
    return gradient
