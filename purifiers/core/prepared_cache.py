"""Keep what is prepared from a network until the network changes or is deleted."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)

_kept: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Tensor, Any]]] = WeakKeyDictionary()


class _Unknown(Exception):
    """A value whose changes cannot be seen."""


def fetch(network: nn.Module, key: str) -> Any:
    """What :func:`keep` kept under ``key``; None if there is nothing, or the network has changed.

    Changes of weights are seen by their versions, addresses and norms; assignments through
    ``parameter.data`` leave the versions as they are.
    """
    kept = _kept.get(network, {}).get(key)
    if kept is None or kept[0] != signature(network) or not torch.equal(kept[1], _norms(network)):
        return None
    return kept[2]


def keep(network: nn.Module, key: str, value: Any) -> None:
    """Keep ``value``, which must not refer to ``network``, if its changes can be seen."""
    seen = signature(network)
    if seen is not None:
        _kept.setdefault(network, {})[key] = (seen, _norms(network), value)


def signature(network: nn.Module) -> Any:
    """Whatever decides about a network's outputs, comparable by ``==``.

    Returns:
        None if the network has hooks, or attributes other than tensors, plain values, functions
        and containers of them, because changes of those cannot be seen.
    """
    try:
        return [(path, id(type(part)), _attributes(part)) for path, part in network.named_modules()]
    except _Unknown:
        return None


def _attributes(part: nn.Module) -> list[Any]:
    attributes = []
    for name, value in vars(part).items():
        if "_hooks" in name and value:
            raise _Unknown
        if name != "_modules":  # visited on their own
            attributes.append((name, _seen(value)))
    return attributes


def _seen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.data_ptr(), value._version, value.shape, value.stride(), value.dtype)
    if isinstance(value, _PLAIN):
        return (type(value), repr(value))
    if isinstance(value, list | tuple):
        return (type(value), [_seen(item) for item in value])
    if isinstance(value, set | frozenset):
        return (type(value), sorted(map(repr, map(_seen, value))))
    if isinstance(value, dict):
        return (type(value), [(_seen(key), _seen(item)) for key, item in value.items()])
    if isinstance(value, type) or inspect.isroutine(value):
        return id(value)
    raise _Unknown


def _norms(network: nn.Module) -> Tensor:
    """L2 norm of each parameter and buffer, on the host; one read per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        by_device.setdefault(tensor.device, []).append(tensor.detach().float().flatten())
    norms = [torch.stack(torch._foreach_norm(tensors)).cpu() for tensors in by_device.values()]
    return torch.cat(norms) if norms else torch.empty(0)
