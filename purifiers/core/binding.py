"""What all functions of methods share: a check that the method is bound, and the precision."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from purifiers.core.errors import UserError
from purifiers.core.images import check_type
from purifiers.core.memory_layout import as_laid_out
from purifiers.core.precision import computing

GUARDED = (
    "purify",
    "step",
    "unrolled",
    "fit_loss",
    "example",
    "own_pass",
    "detector_logit",
    "detected",
    "score",
    "equipped",
)
"""Functions of a method that use the parts built by ``bind``."""

OF_IMAGES = ("purify", "step", "unrolled", "fit_loss", "detector_logit", "detected", "score")
"""Those whose first parameter is images."""


def guard(cls: Any) -> None:
    """Wrap the functions that the class body of a method defines.

    ``bind`` checks the images' shape first, and sets ``is_bound``. The functions in ``GUARDED``
    refuse to run before, if the class or a base overrides ``bind``; those in ``OF_IMAGES`` refuse
    what is no tensor of images, and images with other channels than they are bound for. Purified
    images of contiguous ones are contiguous, and those of none are none. The precision is float32,
    or that of the attack or training that calls them.
    """
    body = vars(cls)
    if "bind" in body:
        cls.needs_binding = True
        cls.bind = _noting(body["bind"])
    for name in GUARDED:
        if name in body:
            purifies = name in ("purify", "step", "unrolled")
            function = _purifying(body[name]) if purifies else body[name]
            setattr(cls, name, _refusing(function))


def _noting(bind: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(bind)
    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        shape = named["shape"] if "shape" in named else arguments[1]
        self.check_shape(shape)
        bind(self, *arguments, **named)
        self.is_bound, self.bound_channels = True, shape[0]

    return noted


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(self: Any, *arguments: Any, **named: Any) -> Any:
        name = component_name(type(self))
        if self.needs_binding and not self.is_bound:
            then = "" if self.traits.fit is None else ", then fit it or load its weights"
            raise UserError(f"{name}: not bound; call .bind(classifier, shape){then}")
        images: Any = arguments[0] if arguments else named.get("images")
        if function.__name__ in OF_IMAGES:
            check_type(images, name)
            _check_channels(images, self.bound_channels, name)
        with computing(None, getattr(images, "device", "cpu")):
            return function(self, *arguments, **named)

    return checked


def _check_channels(images: Tensor, bound: int | None, name: str) -> None:
    if bound is not None and images.shape[1] != bound:
        raise UserError(
            f"{name}: images have {images.shape[1]} channels, but it was bound for {bound}: bind "
            "it for these images, or give it images like those"
        )


def _purifying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a purification so that contiguous images stay contiguous, and no images are returned.

    A classifier that comes after it may flatten with ``view``, which needs contiguous tensors. Many
    a computation fails for no images.
    """

    @functools.wraps(function)
    def kept(self: Any, *arguments: Any, **named: Any) -> Any:
        images = arguments[0] if arguments else named["images"]
        if not len(images):
            return images.clone()
        return as_laid_out(function(self, *arguments, **named), images)

    return kept


def component_name(cls: type) -> str:
    """The name of a component's file: ``NrpDynamic`` -> ``nrp_dynamic``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
