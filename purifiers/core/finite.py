"""Refuse a model whose logits or gradients are not finite: at once, or at an attack's end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from purifiers.core import active

KINDS = ("logits", "gradients", "scores", "purified images")

_sums: ContextVar[dict[str, Tensor] | None] = ContextVar("sums", default=None)


def finite(values: Tensor, kind: str = "logits") -> Tensor:
    """Return ``values`` unchanged.

    Inside :func:`checked_at_end` on a device the error comes at the end.

    Args:
        kind: one of ``KINDS``.

    Raises:
        RuntimeError: they are not finite. A broken model must not count as robust.
    """
    sums = _sums.get()
    if sums is not None:
        # nan where a value is not finite, else 0
        sums[kind].add_((values.detach() * 0).sum())
    elif not torch.isfinite(values).all():
        raise RuntimeError(_message(kind))
    return values


@contextlib.contextmanager
def checked_at_end(device: torch.device) -> Iterator[None]:
    """Postpone the checks of :func:`finite` to the end, so that the host need not wait for them.

    On a CPU, which computes at once, each check stays where it is.

    Raises:
        RuntimeError: some values were not finite.
    """
    at_once = active.reads_are_free(device)
    sums = None if at_once else {kind: torch.zeros((), device=device) for kind in KINDS}
    token = _sums.set(sums)
    try:
        yield
    finally:
        _sums.reset(token)
    if sums is not None:
        infinite = torch.stack(list(sums.values())).isnan().tolist()
        for kind in itertools.compress(sums, infinite):
            raise RuntimeError(_message(kind))


def _message(kind: str) -> str:
    return f"the model gave {kind} that are not finite"
