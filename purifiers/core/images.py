"""Checks of the images and labels that a caller passes in, with the edit that repairs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from purifiers.core.errors import UserError

COLOURS = (1, 3, 4)
"""Numbers of channels of common images; in last place they are a sign of another layout."""


def check_images(images: Any, where: str) -> None:
    """Raise an error unless ``images`` are finite float32 NCHW images in [0, 1].

    Args:
        images: the value to check.
        where: begins the error message.

    Raises:
        UserError: wrong type, layout or range, or values that are not finite.
    """
    check_type(images, where)
    shape = tuple(images.shape)
    if images.dtype != torch.float32 or _channels_last(shape):
        _refuse(images, where)
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low >= 0.0 and high <= 1.0:
        return
    hint = "use finite values"
    if low < 0.0:
        hint = "if they are normalised, move the normalisation into the model"
    elif high > 2.0:
        hint = "divide by 255"
    elif high > 1.0:
        hint = "use images.clamp(0, 1)"
    raise UserError(f"{where}: images must lie in [0, 1], got [{low:g}, {high:g}]; {hint}")


def check_type(images: Any, where: str) -> None:
    """Raise an error unless ``images`` is a tensor (n, C, H, W) of floating-point numbers.

    Raises:
        UserError: a NumPy array, another object, integers or other dimensions.
    """
    if isinstance(images, np.ndarray):
        raise UserError(f"{where}: images is a NumPy array; use {_fix(images)}")
    if not isinstance(images, Tensor):
        raise UserError(
            f"{where}: images is a {type(images).__name__}; use a float32 tensor (n, C, H, W) with "
            "values in [0, 1]"
        )
    if images.dim() != 4 or not images.is_floating_point():
        _refuse(images, where)


def _refuse(images: Tensor, where: str) -> None:
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    layout = ", which looks like NHWC" if _channels_last(shape) else ""
    raise UserError(
        f"{where}: images must be float32 NCHW, got {dtype} {shape}{layout}; use {_fix(images)}"
    )


def check_input(images: Any, where: str) -> None:
    """Raise an error if ``images`` are clearly no images in [0, 1], as 0..255 are not.

    Other tools' attacks may leave [0, 1] for a moment, so the range has a tolerance of 1. On a GPU
    only type and dimensions are checked, because the range would have to wait for the device.

    Raises:
        UserError: another type, other dimensions, another range or NaN.
    """
    check_type(images, where)
    if images.dtype != torch.float32:
        _refuse(images, where)
    if images.is_cuda or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= -1.0 and high <= 2.0):
        hint = "divide by 255" if high > 2.0 else "use finite values in [0, 1]"
        raise UserError(f"{where}: images must lie in [0, 1], got [{low:g}, {high:g}]; {hint}")


def check_labels(labels: Any, images: Tensor, where: str) -> int:
    """Raise an error unless ``labels`` is one class number per image.

    Args:
        labels: the value to check.
        images: the labelled images (n, C, H, W).
        where: begins the error message.

    Returns:
        The largest label; -1 if there are none.

    Raises:
        UserError: wrong type, shape or device, or a negative label.
    """
    if isinstance(labels, np.ndarray):
        raise UserError(f"{where}: labels is a NumPy array; use torch.from_numpy(labels).long()")
    if not isinstance(labels, Tensor):
        kind = type(labels).__name__
        raise UserError(f"{where}: labels is a {kind}; use torch.tensor(labels)")
    if labels.shape != images.shape[:1]:
        shape, hint = tuple(labels.shape), "give one label per image"
        if labels.dim() == 2 and len(labels) == len(images):
            one_hot = labels.shape[1] > 1
            hint = "use " + ("labels.argmax(dim=1)" if one_hot else "labels.squeeze(1)")
            hint += " if they are one-hot" if one_hot else ""
        raise UserError(f"{where}: {len(images)} images but labels of shape {shape}; {hint}")
    if labels.dtype != torch.int64:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise UserError(f"{where}: labels must be int64, got {dtype}; use labels.long()")
    if labels.device != images.device:
        raise UserError(
            f"{where}: labels are on {labels.device} and images on {images.device}; "
            "use labels.to(images.device)"
        )
    if not len(labels):
        return -1
    low, high = (int(value) for value in labels.aminmax())
    if low < 0:
        raise UserError(f"{where}: labels must be at least 0, got {low}; number the classes from 0")
    return high


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether NHWC is the likely layout: few channels in last place and many in second."""
    return len(shape) == 4 and shape[3] in COLOURS and min(shape[1:3]) > max(COLOURS)


def _fix(images: Any) -> str:
    """The expression that makes float32 NCHW images of these, as far as shape and type show."""
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    text = "torch.from_numpy(images)" if isinstance(images, np.ndarray) else "images"
    if len(shape) == 3:
        single = shape[0] in COLOURS or shape[2] in COLOURS
        text += "[None]" if single else "[:, None]"
        shape = (1, *shape) if single else (shape[0], 1, *shape[1:])
    elif len(shape) != 4:
        return "4 dimensions (n, C, H, W)"
    if _channels_last(shape):
        text += ".permute(0, 3, 1, 2)"
    if dtype != "float32":
        text += ".float()" + (" / 255" if "int" in dtype else "")
    return text
