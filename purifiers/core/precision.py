"""The precisions that a network may answer in while it is attacked."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


def float32_everywhere() -> None:
    """Let float32 be float32 on a GPU too. By torch's default convolutions keep 10 of its 23 bits
    there (TF32), and images that end on a decision boundary do not survive another rounding."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def computing(precision: str, images: Tensor) -> AbstractContextManager:
    """Matrix products and convolutions in ``precision`` on the images' device, weights as they are.

    For attacks that make training examples: of their gradients only the signs are used, and what is
    trained on the examples is computed outside. bfloat16 has 8 significant bits.
    """
    return torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
