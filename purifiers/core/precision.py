"""The precision of convolutions and matrix products: declared by the suite, never inherited."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from purifiers.core.choices import CHOICES
from purifiers.core.errors import check_choice

PRECISIONS = CHOICES["Precision"]

# without torch's types, which lack these attributes
_CUDA: Any = torch.backends.cuda
_CUDNN: Any = torch.backends.cudnn
_MKLDNN: Any = torch.backends.mkldnn

_SWITCHES: tuple[Any, ...] = (
    *(_CUDA.matmul, _CUDNN.conv, _CUDNN.rnn),
    *(_MKLDNN.matmul, _MKLDNN.conv, _MKLDNN.rnn),
)
"""Process-wide switches that let float32 operations round to fewer bits."""
_WITH_TF32 = _SWITCHES[:3]

_declared: ContextVar[str | None] = ContextVar("precision", default=None)


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, in float32 if their type is shorter: losses are not computed in bfloat16."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def declared() -> str:
    """The precision of the enclosing :func:`computing`; ``float32`` if there is none."""
    return _declared.get() or "float32"


@contextlib.contextmanager
def computing(precision: str | None, device: torch.device | str) -> Iterator[None]:
    """Compute convolutions and matrix products in ``precision``; restore torch's settings after.

    Settings of the process or the caller, such as :func:`torch.set_float32_matmul_precision` and
    :func:`torch.autocast`, have no effect inside. Torch's default for convolutions on a GPU is
    TF32, and adversarial images on a decision boundary may lose their success under different
    rounding.

    Args:
        precision: ``float32``; ``tf32``, 10 bits of mantissa on a GPU and float32 on a CPU; or
            ``bfloat16``, 7 bits of mantissa, by autocast: weights stay float32, normalisation
            accumulates in float32, and losses are computed in it. None: that of an enclosing call,
            else float32.
        device: device of the images.

    Raises:
        UserError: an unknown precision.
    """
    if precision is None and _declared.get() is not None:
        yield
        return
    effective = check_choice("precision", precision or "float32", PRECISIONS)
    token = _declared.set(effective)
    # casts of weights are not cached: one that is made while gradients are disabled would be
    # reused where they are needed
    autocast = torch.autocast(
        torch.device(device).type,
        torch.bfloat16,
        enabled=effective == "bfloat16",
        cache_enabled=False,
    )
    try:
        with rounding(effective), autocast:
            yield
    finally:
        _declared.reset(token)


@contextlib.contextmanager
def rounding(precision: str) -> Iterator[None]:
    """The same without autocast, for the backward pass of a loss computed in ``precision``."""
    before = [switch.fp32_precision for switch in _SWITCHES]
    try:
        for switch in _SWITCHES:
            tf32 = precision == "tf32" and switch in _WITH_TF32
            switch.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for switch, value in zip(_SWITCHES, before, strict=True):
            switch.fp32_precision = value
