"""Relativistic critic of NRP: compares images by how real they look (Jolicoeur-Martineau 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

SLOPE = 0.2
SMALLEST = 4
"""Height in pixels at or below which a map is not halved further."""


class RelativisticCritic(nn.Module):
    """Score images (n, C, H, W) with (n,), high for real ones; only differences are meaningful.

    NRP's authors publish no critic, so this one is our choice: 3x3 convolutions of stride 2 with
    LeakyReLU(.2) down to a height of 4. Their channels double from ``width`` up to 8 times as many.
    The mean over the map and a linear layer without bias follow. No normalisation.
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
    """Relativistic average loss of scores (n,), in nats.

    It is low if ``higher`` exceeds the mean of ``lower`` and ``lower`` is below the mean of
    ``higher``. It is log 2 if the two cannot be distinguished. It is the mean of the two
    expectations that Jolicoeur-Martineau (2019, equations 9 and 10) adds. ``higher`` are the real
    images for the critic, and the generated images for the generator.
    """
    above = functional.softplus(lower.mean() - higher).mean()
    below = functional.softplus(lower - higher.mean()).mean()
    return (above + below) / 2.0


def critic_loss(critic: nn.Module, real: Tensor, generated: Tensor) -> Tensor:
    """Critic's loss on images (n, C, H, W), without gradients for the generator."""
    scores = critic(torch.cat([real, generated.detach()]))
    return relativistic_loss(scores[: len(real)], scores[len(real) :])


def generator_loss(critic: nn.Module, real: Tensor, generated: Tensor) -> Tensor:
    """Generator's loss: the roles exchanged, without gradients for the critic's weights."""
    weights = {name: weight.detach() for name, weight in critic.named_parameters()}
    scores = functional_call(critic, weights, (torch.cat([real, generated]),))
    return relativistic_loss(scores[len(real) :], scores[: len(real)])
