"""The images of a batch that an attack still works on, without waiting for a device.

On a CPU the host sees every value at once, so images are dropped from the batch as soon as they are
broken. On a device a look at a value stops the host until all queued work is done. There, broken
images stay in the batch, masked, and the batch shrinks now and then, to one of a few sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZES = 4
"""A batch on a device shrinks to 1/2, 1/4, ... 1/2 ** SIZES of its size, or to none. Our choice:
each size may cost a new choice of convolution algorithms."""

LONGEST_WAIT = 16
"""Most steps between two looks at the mask. Our choice; the first looks are after 1, 2, 4 and 8
steps, because most images break early."""


def reads_are_free(device: torch.device) -> bool:
    """Whether the host reads values on ``device`` without waiting; decides between the policies."""
    return device.type == "cpu"


def active_set(images: Tensor, indices: Tensor, longest_wait: int = LONGEST_WAIT) -> ActiveSet:
    """All images of a batch (n, C, H, W), under the policy of their device.

    Args:
        indices: the images' indices in their data set (n,).
        longest_wait: most steps between two looks at the mask on a device, at least 1.
    """
    if reads_are_free(images.device):
        return ActiveSet(images, indices)
    return MaskedSet(images, indices, longest_wait)


class ActiveSet:
    """Policy of a CPU: rows are dropped at once.

    Attributes:
        rows: positions of the current rows in the batch, int64 (k,).
        indices: their indices in the data set, int64 (k,).
        at_once: whether the host reads values and drops rows at every step.
    """

    at_once = True

    def __init__(self, images: Tensor, indices: Tensor) -> None:
        self.rows = torch.arange(len(images), device=images.device)
        self.indices = indices

    def update(self, unbroken: Tensor) -> Tensor | None:
        """Note which of the current rows are unbroken, bool (k,); a broken row stays broken.

        Returns:
            Positions of the rows to keep, int64 on the host, for :meth:`reduce`; None: all rows.
        """
        return None if unbroken.all() else unbroken.nonzero().flatten()

    def reduce(self, kept: Tensor, *tensors: Tensor) -> Iterator[Tensor]:
        """Drop all other rows; yield the remaining rows of each of ``tensors`` (k, ...)."""
        self.rows, self.indices = self.rows[kept], self.indices[kept]
        return (tensor[kept] for tensor in tensors)

    def only(self, where: Tensor) -> Tensor:
        """``where``, bool (k,), without the rows that are broken."""
        return where

    def moved(self, new: Tensor, old: Tensor | float) -> Tensor:
        """``new`` (k, ...), but ``old`` in the rows that are broken."""
        return new

    def store(self, result: Tensor, values: Tensor) -> None:
        """Write the current rows ``values`` (k, ...) to their places in ``result`` (n, ...)."""
        result[self.rows] = values


class MaskedSet(ActiveSet):
    """Policy of a device: rows are masked at once and dropped a few times per attack.

    The host reads a copy of the mask that was begun one step earlier, so that the device has work
    while the host waits. Rows that fill up a size may be broken; they stay masked.
    """

    at_once = False

    def __init__(self, images: Tensor, indices: Tensor, longest_wait: int = LONGEST_WAIT) -> None:
        super().__init__(images, indices)
        self.mask = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self.longest_wait = longest_wait
        self._copy: _HostCopy | None = None
        self._steps, self._next_look = 0, 1

    def update(self, unbroken: Tensor) -> Tensor | None:
        self.mask = self.mask & unbroken
        self._steps += 1
        copy, self._copy = self._copy, None
        kept = None if copy is None else self._kept(copy.read())
        if kept is None and self._steps >= self._next_look:
            self._copy = _HostCopy(self.mask)
            self._next_look = self._steps + min(self._steps, self.longest_wait)
        return kept

    def _kept(self, unbroken: np.ndarray[Any, Any]) -> Tensor | None:
        """Positions to keep on the host, int64: the unbroken rows and as many as fill a size."""
        kept = _filled(unbroken)
        return kept if len(kept) < len(unbroken) else None

    def reduce(self, kept: Tensor, *tensors: Tensor) -> Iterator[Tensor]:
        self.indices = self.indices[kept.to(self.indices.device)]
        kept = kept.to(self.mask.device, non_blocking=True)
        self.rows, self.mask = self.rows[kept], self.mask[kept]
        return (tensor[kept] for tensor in tensors)

    def only(self, where: Tensor) -> Tensor:
        return where & self.mask

    def moved(self, new: Tensor, old: Tensor | float) -> Tensor:
        return torch.where(_spread(self.mask, new), new, old)


def selected(where: Tensor) -> Tensor:
    """Positions of the rows ``where``, bool (k,), int64 on the host.

    On a device other rows are added until their number is one of a few sizes.
    """
    if reads_are_free(where.device):
        return where.nonzero().flatten()
    return _filled(where.cpu().numpy())


def _filled(where: np.ndarray[Any, Any]) -> Tensor:
    count = int(np.count_nonzero(where))
    sizes = [0] + [-(-len(where) // 2**k) for k in range(SIZES, -1, -1)]
    size = next(size for size in sizes if size >= count)
    return torch.from_numpy(np.sort(np.argsort(~where, kind="stable")[:size]))


def assign(into: Tensor, rows: Tensor, where: Tensor, values: Tensor) -> None:
    """Write ``values[where]`` to ``into[rows[where]]``.

    Args:
        into: (n, ...), changed in place.
        rows: different positions in ``into``, int64 (k,).
        where: bool (k,).
        values: (k, ...).
    """
    if reads_are_free(into.device):
        into[rows[where]] = values[where]
    else:
        into[rows] = torch.where(_spread(where, values), values, into[rows])


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))


class _HostCopy:
    """A copy of a tensor on the host, begun now and read later."""

    def __init__(self, values: Tensor) -> None:
        self._event: Any = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = values.to("cpu", copy=True)

    def read(self) -> np.ndarray[Any, Any]:
        """The values; waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.numpy()
