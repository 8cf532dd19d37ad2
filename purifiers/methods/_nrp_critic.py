"""A critic that asks whether an image looks more real than others (Jolicoeur-Martineau 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

SLOPE = 0.2
SMALLEST = 4
"""No convolution halves a map of this height or less."""


class RelativisticCritic(nn.Module):
    """Images (n, C, H, W) to scores (n,), high for real ones; only their differences mean anything.

    NRP's authors publish no critic, so it is ours: convolutions 3x3 of stride 2 with LeakyReLU(.2)
    down to a height of 4, whose channels double from ``width`` on up to 8 times as many, then the
    mean over the map and a linear layer without offset. No normalisation.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        inputs, height, _ = shape
        layers: list[nn.Module] = []
        while height > SMALLEST or not layers:
            outputs = width * min(2 ** (len(layers) // 2), 8)
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(SLOPE)]
            inputs, height = outputs, -(-height // 2)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean(dim=(2, 3))).squeeze(1)


def relativistic_loss(higher: Tensor, lower: Tensor) -> Tensor:
    """Relativistic average loss of scores (n,), of which ``higher`` should lie above the mean of
    ``lower``, and ``lower`` below the mean of ``higher``; log 2 where they cannot be told apart.

    The mean of the two expectations that Jolicoeur-Martineau (2019, equations 9 and 10) adds. For
    the critic real images are ``higher``, for the generator its own.
    """
    above = functional.softplus(lower.mean() - higher).mean()
    below = functional.softplus(lower - higher.mean()).mean()
    return (above + below) / 2.0


def critic_loss(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """The critic's loss on images (n, C, H, W); none of it reaches what made them."""
    scores = critic(torch.cat([real, made.detach()]))
    return relativistic_loss(scores[: len(real)], scores[len(real) :])


def generator_loss(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """The same with the roles exchanged; the critic judges and does not learn."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    scores = functional_call(critic, weights, (torch.cat([real, made]),))
    return relativistic_loss(scores[len(real) :], scores[: len(real)])
