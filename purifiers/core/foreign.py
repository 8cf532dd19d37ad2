"""Purifiers from outside the suite: any module or function from images to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed
from purifiers.core.traits import MethodTraits


class Foreign(Method):
    """A purifier that is no :class:`purifiers.core.component.Method`.

    It counts as random unless it is declared not to be. A random purifier draws from torch's global
    generators, which are seeded from the seed and the batch's indices and restored afterwards.

    Args:
        purifier: images to images of the same shape, float32 (n, C, H, W) in [0, 1]; it may work in
            place.
        random: whether two calls may differ; an attribute that may be set later.
        differentiable: whether the output has a useful gradient; likewise.

    Raises:
        UserError: when called: the purifier returned something else than such images.
    """

    traits = MethodTraits(version=1, random=True)

    def __init__(
        self,
        purifier: Callable[[Tensor], Tensor],
        random: bool = True,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.purifier = purifier
        self.traits = self.traits.replace(  # type: ignore[misc]
            random=random, differentiable=differentiable
        )

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        if not self.random:
            return self._called(images)
        rows = default_indices(images, indices).tolist()
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(seed, "foreign", *rows))
            return self._called(images)

    def _called(self, images: Tensor) -> Tensor:
        output = self.purifier(images.clone())  # it may work in place
        shape = getattr(output, "shape", None)
        if (
            not isinstance(output, Tensor)
            or shape != images.shape
            or not output.is_floating_point()
        ):
            kind = str(getattr(output, "dtype", type(output).__name__)).removeprefix("torch.")
            name = getattr(self.purifier, "__name__", type(self.purifier).__name__)
            raise UserError(
                f"{name} returned {kind} {tuple(shape or ())}: return images as it gets them, "
                f"float32 {tuple(images.shape)}"
            )
        return output.to(images.dtype)


def as_method(purifier: Method | Callable[[Tensor], Tensor]) -> Method:
    """The purifier as a method; a method is returned unchanged.

    Raises:
        UserError: something that cannot be called with images.
    """
    if isinstance(purifier, Method):
        return purifier
    if isinstance(purifier, type) or not callable(purifier):
        raise UserError(
            f"methods holds {purifier!r}: give purifiers.method(name, ...), or a module or "
            "function from images to images"
        )
    return Foreign(purifier)


def as_methods(purifiers: Sequence[Method | Callable[[Tensor], Tensor]]) -> list[Method]:
    """The purifiers as methods, see :func:`as_method`.

    Raises:
        UserError: a single purifier instead of a list.
    """
    if not isinstance(purifiers, list | tuple | nn.ModuleList):
        name = type(purifiers).__name__
        raise UserError(f"methods is a {name}: give a list, [purifier]")
    return [as_method(purifier) for purifier in purifiers]


def measure_traits(method: Method, images: Tensor) -> None:
    """Find out whether a foreign purifier is random and differentiable; others are declared.

    Args:
        images: float32 (n, C, H, W) in [0, 1]; purified three times.
    """
    if not isinstance(method, Foreign) or not method.random:
        return
    with torch.no_grad():
        first, second = method.purify(images, 0), method.purify(images, 1)
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        output = method.purify(leaf, 0)
        differentiable = output.requires_grad
        if differentiable:
            (gradient,) = torch.autograd.grad(output.sum(), leaf, allow_unused=True)
            differentiable = gradient is not None and bool(gradient.ne(0).any())
    method.traits = method.traits.replace(  # type: ignore[misc]
        random=not torch.equal(first, second), differentiable=differentiable
    )
