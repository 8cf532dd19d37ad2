"""DiffPure as its authors run it, for comparison: one image and one step after the other."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.noise import keys_on, normal_on
from purifiers.methods.diff_pure import DiffPure

BETA_MIN, BETA_MAX = 0.1, 20.0


class PlainNetwork(nn.Module):
    """The layers of a DiffPure network, called as `yang-song/score_sde_pytorch` calls them.

    In contiguous layout. Each block has its own layer for the time, and each kind of attention
    vector its own projection. All pairs of pixels are computed.
    """

    def __init__(self, method: DiffPure) -> None:
        super().__init__()
        network: Any = copy.deepcopy(method.network)
        self.network = network.to(memory_format=torch.contiguous_format)
        weights = network.shifts.weight.split(network.sizes)
        biases = network.shifts.bias.split(network.sizes)
        pairs = zip(weights, biases, strict=True)
        self.dense = nn.ModuleList(_linear(*pair) for pair in pairs)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Predicted noise at the times ``labels`` / 999, (n,)."""
        network, dense = self.network, iter(self.dense)
        half = network.width // 2
        scale = math.log(10_000.0) / (half - 1)
        frequencies = torch.exp(torch.arange(half, device=images.device) * -scale)
        angles = labels[:, None] * frequencies[None, :]
        embedded = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
        embedded = network.embedding[2](functional.silu(network.embedding[0](embedded)))
        hidden = network.stem(images)
        skips = [hidden]
        for stage in network.down:
            hidden = _stage(stage, hidden, embedded, next(dense))
            skips.append(hidden)
        for stage in network.middle:
            hidden = _stage(stage, hidden, embedded, next(dense))
        for stage in network.up:
            if stage.joins:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _stage(stage, hidden, embedded, next(dense))
        noise: Tensor = network.output(functional.silu(network.norm(hidden)))
        return noise


def one_by_one(
    method: DiffPure, network: PlainNetwork, images: Tensor, seed: int, first: int = 0
) -> Tensor:
    """Euler-Maruyama on the reverse SDE, as torchsde runs it for `NVlabs/DiffPure`.

    Args:
        first: index of the first image, whose noise depends on it.
    """
    rows = enumerate(images.split(1), start=first)
    return torch.cat([_purified(method, network, image, seed, index) for index, image in rows])


def _purified(
    method: DiffPure, network: PlainNetwork, image: Tensor, seed: int, index: int
) -> Tensor:
    keys = keys_on(seed, torch.tensor([index], device=image.device), "diff_pure")
    size = image[0].numel()
    stop, step = method.stop_time, method.stop_time / method.steps
    squared = torch.exp(torch.tensor(-0.5 * stop**2 * (BETA_MAX - BETA_MIN) - stop * BETA_MIN))
    state = squared.sqrt() * (2 * image - 1)
    state = state + (1 - squared).sqrt() * normal_on(keys, image.shape[1:])
    for number in range(method.steps):
        time = torch.full((1,), stop - number * step, device=image.device)
        length = step if number < method.steps - 1 else step - 1e-5
        beta = BETA_MIN + time * (BETA_MAX - BETA_MIN)
        log_decay = -0.25 * time**2 * (BETA_MAX - BETA_MIN) - 0.5 * time * BETA_MIN
        std = torch.sqrt(1 - torch.exp(2 * log_decay))
        score = -network(state, time * 999) / std[:, None, None, None]
        drift = 0.5 * beta[:, None, None, None] * state + beta[:, None, None, None] * score
        draw = normal_on(keys, image.shape[1:], first=(number + 1) * size)
        diffusion = torch.sqrt(beta)[:, None, None, None].expand(state.shape)
        state = state + drift * length + diffusion * math.sqrt(length) * draw
    return ((state + 1) * 0.5).clamp(0.0, 1.0)


def _stage(stage: Any, hidden: Tensor, embedded: Tensor, dense: nn.Module) -> Tensor:
    block = stage.block
    branch = functional.silu(block.first_norm(hidden))
    if block.resample == "down":
        branch, hidden = functional.avg_pool2d(branch, 2), functional.avg_pool2d(hidden, 2)
    if block.resample == "up":
        branch = branch.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        hidden = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    branch = block.first(branch)
    branch = branch + dense(functional.silu(embedded))[:, :, None, None]
    branch = block.second(block.dropout(functional.silu(block.second_norm(branch))))
    if block.shortcut is not None:
        hidden = block.shortcut(hidden)
    hidden = (hidden + branch) / math.sqrt(2.0)
    return hidden if stage.attention is None else _attention(stage.attention, hidden)


def _attention(layer: Any, hidden: Tensor) -> Tensor:
    normed = layer.norm(hidden)
    weights, biases = layer.projections.weight.chunk(3), layer.projections.bias.chunk(3)
    query, key, value = (
        functional.conv2d(normed, weight, bias)
        for weight, bias in zip(weights, biases, strict=True)
    )
    count, channels, height, width = hidden.shape
    scores = torch.einsum("bchw,bcij->bhwij", query, key) * channels**-0.5
    scores = scores.reshape(count, height, width, height * width).softmax(dim=-1)
    scores = scores.reshape(count, height, width, height, width)
    mixed = layer.output(torch.einsum("bhwij,bcij->bchw", scores, value))
    result: Tensor = (hidden + mixed) / math.sqrt(2.0)
    return result


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer.requires_grad_(False)
