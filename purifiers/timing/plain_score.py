"""ADP as its authors run it, for comparison: one run and one image after the other."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.noise import derive_seed, keys_on, normal_on
from purifiers.methods.adp import PROBE, Adp


class PlainScore(nn.Module):
    """The layers of a score network, in contiguous layout, with windows pooled at once."""

    def __init__(self, method: Adp) -> None:
        super().__init__()
        network: Any = copy.deepcopy(method.network)
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        """The score times the noise level, (n, C, H, W)."""
        network = self.network
        hidden = network.first(2.0 * images - 1.0)
        encoded = []
        for stage in network.stages:
            hidden = stage(hidden)
            encoded.append(hidden)
        decoded = _refined(network.refined[0], [encoded.pop()])
        for refine in network.refined[1:]:
            decoded = _refined(refine, [encoded.pop(), decoded])
        score: Tensor = network.last(functional.elu(network.norm(decoded)))
        return score


def _refined(refine: Any, inputs: list[Tensor]) -> Tensor:
    adapted = [adapt(hidden) for adapt, hidden in zip(refine.adapted, inputs, strict=True)]
    total = adapted[0]
    if len(refine.fused):
        total = torch.zeros(())
        size = adapted[0].shape[2:]
        for convolution, part in zip(refine.fused, adapted, strict=True):
            total = total + functional.interpolate(
                convolution(part), size, mode="bilinear", align_corners=True
            )
    total = functional.elu(total)
    path = total
    for convolution in refine.pooled:
        path = convolution(functional.max_pool2d(path, 5, 1, 2))
        total = total + path
    result: Tensor = refine.units(total)
    return result


def run_by_run(method: Adp, score: PlainScore, images: Tensor, seed: int, draws: int) -> Tensor:
    """Purified images (draws, n, C, H, W), as `jmyoon1/adp` loops over runs; one image at a time.

    An image that has stopped still passes through the network.
    """
    runs = []
    for draw in range(draws):
        own_seed = derive_seed(seed, draw)
        single = images.split(1)
        rows = [_purified(method, score, image, own_seed, i) for i, image in enumerate(single)]
        runs.append(torch.cat(rows))
    return torch.stack(runs)


def _purified(method: Adp, score: PlainScore, image: Tensor, seed: int, index: int) -> Tensor:
    keys = keys_on(seed, torch.tensor([index], device=image.device), "adp")
    state = (image + method.sigma * normal_on(keys, image.shape[1:])).clamp(0.0, 1.0)
    moving = torch.ones((), dtype=torch.bool)
    for _ in range(method.iterations):
        gradient = score(state)
        beside = score(state + PROBE * gradient)
        squares = (gradient * gradient).sum()
        change = 1.0 - (gradient * beside).sum() / squares
        length = (method.step_scale * PROBE / change).clamp(method.step_min, method.step_max)
        length = torch.where(change > 0, length, torch.full_like(length, method.step_min))
        moving = moving & (length > method.step_stop)
        state = torch.where(moving, (state + length * gradient).clamp(0.0, 1.0), state)
    return state
