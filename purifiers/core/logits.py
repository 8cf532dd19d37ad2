"""Logits from what a model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from purifiers.core.errors import UserError


def check_model(model: object) -> None:
    """Raise an error unless ``model`` can be called.

    Raises:
        UserError: it cannot.
    """
    if not callable(model):
        raise UserError(
            f"the classifier is a {type(model).__name__}, but must be a network or another "
            "function of images to logits"
        )


def queried(model: Callable[[Tensor], Any], images: Tensor, named: object = None) -> Tensor:
    """Logits (n, classes) of a model, which receives a copy of the images: it may work in place.

    Args:
        model: images to logits, or to an object with them.
        images: float32 (n, C, H, W).
        named: what the error message names; None: ``model``.

    Raises:
        UserError: see :func:`as_logits`.
    """
    return as_logits(model(images.clone()), model if named is None else named)


def as_logits(output: Any, model: object) -> Tensor:
    """The tensor that ``model`` returned, or the attribute ``logits`` of its output.

    Models of Hugging Face's `transformers` return an object with such an attribute.

    Args:
        output: what the model returned.
        model: the model, for the error message.

    Raises:
        UserError: neither a tensor nor an object with logits.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    name = getattr(model, "__name__", type(model).__name__)
    item = "[0]" if isinstance(output, tuple | list) else ""
    if isinstance(output, dict):
        item = f"[{next(iter(output), 'logits')!r}]"
    raise UserError(
        f"{name} returned a {type(output).__name__}, but logits (n, classes) are needed; use a "
        f"function that returns them, such as lambda images: model(images){item}"
    )
