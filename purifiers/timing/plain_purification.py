"""Straightforward loops of Defense-GAN and AID-Purifier, as their authors' code has them.

Defense-GAN's does what `kabkabm/defensegan` does: one restart after the other, with gradients of
all trainable parameters. AID-Purifier's does what `yelobean/AIDPurifier` does: a pass of the
classifier's first layers for each of its four taps, two of them multiplied by zero, in contiguous
layout.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.noise import normal
from purifiers.methods.aid import Aid
from purifiers.methods.defense_gan import DefenseGan


class Crop(nn.Module):
    """Keep the last rows and columns."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[..., -self.size :, -self.size :]


def plain(method: DefenseGan) -> nn.Sequential:
    """Copy the generator layer by layer, with trainable parameters."""
    source: Any = method.generator
    layers: list[nn.Module] = [nn.Linear(*reversed(source.dense.weight.shape)), nn.ReLU()]
    layers[0].load_state_dict(source.dense.state_dict())
    layers.append(nn.Unflatten(1, source.first))
    for source_layer, size in zip(source.layers, source.sizes, strict=True):
        inputs, outputs = source_layer.weight.shape[:2]
        layer = nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, source_layer.output_padding)
        layer.load_state_dict(source_layer.state_dict())
        layers += [layer, Crop(size), nn.ReLU()]
    network: Any = nn.Sequential(*layers[:-1], nn.Sigmoid()).to(source.dense.weight.device)
    result: nn.Sequential = network.to(memory_format=torch.contiguous_format)
    return result


def sequential(method: DefenseGan, network: nn.Sequential, images: Tensor) -> Tensor:
    """Best of several restarts, run one after the other."""
    best = torch.full((len(images),), math.inf, device=images.device)
    reconstructions = torch.zeros_like(images)
    for restart in range(method.restarts):
        start = normal(
            0, range(len(images)), (method.latent,), tag=f"defense_gan {restart}"
        ) / math.sqrt(method.latent)
        latent = start.to(images.device).requires_grad_(True)
        optimizer = torch.optim.SGD([latent], lr=method.learning_rate, momentum=method.momentum)
        for _ in range(method.steps - 1):
            optimizer.zero_grad()
            (network(latent) - images).square().flatten(1).mean(dim=1).sum().backward()
            optimizer.step()
        with torch.no_grad():
            candidates = network(latent)
        error = (candidates - images).square().flatten(1).mean(dim=1)
        better = error < best
        reconstructions[better], best[better] = candidates[better], error[better]
    return reconstructions


def beginnings(classifier: WideResnet) -> list[nn.Sequential]:
    """Copies of the layers before each tap, each with its pooling."""
    network: Any = copy.deepcopy(classifier)
    layers = list(network.to(memory_format=torch.contiguous_format).children())
    count = len(classifier.TAPS)
    return [nn.Sequential(*layers[: 1 + i], nn.AdaptiveAvgPool2d(1)) for i in range(count)]


def repeated(method: Aid, parts: list[nn.Sequential], images: Tensor) -> Tensor:
    """Take sign steps towards "clean", with each tap's features computed from the start."""
    discriminator: Any = method.discriminator
    taps = list(discriminator.branches)
    purified = images
    for _ in range(method.iterations):
        purified = purified.detach().requires_grad_(True)
        features = [part(purified).flatten(1) for part in parts]
        features = [
            feature if tap in method.taps else 0 * feature
            for tap, feature in zip(taps, features, strict=True)
        ]
        encoded = [discriminator.branches[t](f) for t, f in zip(taps, features, strict=True)]
        clean = -discriminator.head(torch.cat(encoded, dim=1)).sum()
        (gradient,) = torch.autograd.grad(clean, purified)
        moved = purified + method.step_size * gradient.sign()
        moved = images + (moved - images).clamp(-method.eps, method.eps)
        purified = moved.clamp(0.0, 1.0)
    return purified.detach()
