"""The precisions that a network may answer in while it is attacked."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from purifiers.core.errors import check_choice

PRECISIONS = ("float32", "bfloat16")


def check_precision(name: str, precision: str) -> str:
    """Return ``precision`` if it is one of ``PRECISIONS``.

    Raises:
        UserError: it is not.
    """
    return check_choice(name, precision, PRECISIONS)


def computing(precision: str, images: Tensor) -> AbstractContextManager:
    """Matrix products and convolutions in ``precision`` on the images' device, weights as they are.

    For attacks that make training examples: of their gradients only the signs are used, and what is
    trained on the examples is computed outside. bfloat16 has 8 significant bits.
    """
    return torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
