"""The last linear layer of a network: what it reads, and a restorer in front of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from purifiers.core.component import frozen
from purifiers.core.errors import UserError
from purifiers.core.logits import as_logits
from purifiers.core.modes import evaluation
from purifiers.core.taps import black_image


def head_name(network: nn.Module, shape: Sequence[int]) -> str:
    """Dotted name of the linear layer whose output is the network's logits.

    Args:
        network: images (n, C, H, W) to logits.
        shape: (C, H, W) of its images.

    Raises:
        UserError: the network does not end with such a layer.
    """
    owner = type(network).__name__
    outputs: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        return lambda part, inputs, output: outputs.__setitem__(name, output)

    layers = {n: part for n, part in network.named_modules() if n and isinstance(part, nn.Linear)}
    handles = [part.register_forward_hook(hook_of(name)) for name, part in layers.items()]
    try:
        with evaluation(network):
            logits = as_logits(network(black_image(network, shape)), network)
    finally:
        for handle in handles:
            handle.remove()
    for name, output in outputs.items():
        if output is logits and output.dim() == 2:
            return name
    raise UserError(
        f"{owner} has no embedding to restore, because its logits are not the output of a linear "
        "layer: choose a classifier that ends with one, such as vgg"
    )


def split(network: nn.Module, shape: Sequence[int]) -> tuple[nn.Module, nn.Linear]:
    """Frozen copies of a network's encoder, images to embeddings (n, width), and of its head.

    Args:
        network, shape: as for :func:`head_name`.

    Raises:
        UserError: as :func:`head_name`.
    """
    name = head_name(network, shape)
    encoder = frozen(copy.deepcopy(network))
    head = encoder.get_submodule(name)
    assert isinstance(head, nn.Linear)
    encoder.set_submodule(name, nn.Identity())
    return encoder, head


def with_restorer(network: nn.Module, shape: Sequence[int], restorer: nn.Module) -> nn.Module:
    """A frozen copy of a network that restores its embedding before the head reads it.

    Args:
        network, shape: as for :func:`head_name`.
        restorer: embeddings (n, width) to embeddings; not copied.

    Raises:
        UserError: as :func:`head_name`.
    """
    name = head_name(network, shape)
    restoring = frozen(copy.deepcopy(network))
    head = restoring.get_submodule(name)
    restoring.set_submodule(name, nn.Sequential(restorer, head).eval())
    return restoring
