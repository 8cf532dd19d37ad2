"""Precisions in which a network may compute while it is attacked."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


def float32_everywhere() -> None:
    """Disable TF32, so that GPUs compute float32 convolutions and products in full precision.

    TF32, torch's default for convolutions, keeps 10 of the 23 bits of the mantissa. Adversarial
    images on a decision boundary may lose their success under different rounding.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def computing(precision: str, images: Tensor) -> AbstractContextManager:
    """Context in which matrix products and convolutions run in ``precision``, weights unchanged.

    Normalisation accumulates in float32, and losses are computed in it. bfloat16 has 8 significant
    bits. Casts of weights are not cached, because a cast that is made while gradients are disabled
    would be reused where they are needed.
    """
    return torch.autocast(
        images.device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
