"""Memory layout of images and weights: channels-last where a network can be run in it.

Channels-last speeds up convolutions, on CPUs too. Some networks flatten with
``x.view(x.size(0), -1)``, which needs contiguous tensors; a probe detects them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core.modes import evaluation

_PROBED = 2
"""Images of a probe; one image would have both layouts if it has one channel."""


def runs_channels_last(network: nn.Module, images: Tensor) -> bool:
    """Whether a network with channels-last weights takes channels-last images (n, C, H, W).

    The network's modes and statistics and the random numbers are left as they are.
    """
    images = images[:_PROBED].detach().clone(memory_format=torch.channels_last)
    try:
        with evaluation(network), torch.random.fork_rng(devices=[]):
            network(images)
    except RuntimeError:  # PyTorch's for a view of incompatible strides
        return False
    return True


def lay_out(network: nn.Module, shape: Sequence[int]) -> None:
    """Convert a network to channels-last, or to contiguous tensors if it cannot be run otherwise.

    A contiguous network converts the images that it is called with.

    Args:
        shape: (C, H, W) of its images.
    """
    if is_contiguous(network):
        return
    _convert(network, torch.channels_last)
    parameter = next(network.parameters(), torch.empty(0))
    black = torch.zeros(_PROBED, *shape, device=parameter.device)
    if runs_channels_last(network, black):
        return
    to_contiguous(network)
    network.takes_contiguous = True  # type: ignore[assignment]
    network.register_forward_pre_hook(_contiguous_images)


def to_contiguous(network: nn.Module) -> None:
    """Convert the weights of a network to contiguous tensors."""
    _convert(network, torch.contiguous_format)


def is_contiguous(network: object) -> bool:
    """Whether :func:`lay_out` found that a network needs contiguous images."""
    return getattr(network, "takes_contiguous", False)


def as_taken_by(network: object, images: Tensor) -> Tensor:
    """Images (n, C, H, W) in the layout that a network takes."""
    return images.contiguous() if is_contiguous(network) else images


def as_laid_out(result: Any, images: Tensor) -> Any:
    """A tensor in the layout of ``images``, if it has their shape; any other result unchanged."""
    if not isinstance(result, Tensor) or result.shape != images.shape or not images.is_contiguous():
        return result
    return result.contiguous()


def _convert(network: nn.Module, layout: torch.memory_format) -> None:
    network.to(memory_format=layout)  # type: ignore[call-overload]


def _contiguous_images(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].contiguous(), *arguments[1:])
