"""What every attack, purifier and classifier promises."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.errors import UserError
from purifiers.core.numbers import length_kind, read_length
from purifiers.core.recipe import Recipe
from purifiers.core.target import Target, as_target
from purifiers.core.traits import AttackTraits, ClassifierTraits, MethodTraits


class Component:
    """Base of everything that YAML names.

    A parameter annotated ``Length`` or ``Radius`` may be given as text such as ``"8/255"``. It is
    converted and range-checked before ``__init__`` runs, however the component is constructed.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _with_lengths(vars(cls)["__init__"])  # type: ignore[method-assign]


def _with_lengths(init: Callable[..., None]) -> Callable[..., None]:
    """``init`` with its lengths converted, defaults included; ``init`` itself if it has none."""
    kinds = {
        name: kind
        for name, annotation in init.__annotations__.items()
        if (kind := length_kind([part.strip() for part in str(annotation).split("|")]))
    }
    if not kinds:
        return init

    signature = inspect.signature(init)

    @functools.wraps(init)
    def converted(self: Any, *context: Any, **parameters: Any) -> None:
        call = signature.bind(self, *context, **parameters)
        call.apply_defaults()
        for name, kind in kinds.items():
            if (value := call.arguments[name]) is not None:
                call.arguments[name] = read_length(kind, value, f"{type(self).__name__}: {name}")
        init(*call.args, **call.kwargs)

    return converted


def check_images(images: Tensor, where: str) -> None:
    """Refuse anything but finite float32 NCHW images in [0, 1].

    Raises:
        UserError: wrong type, dimension, range, or values that are not finite.
    """
    if images.dtype != torch.float32 or images.dim() != 4:
        shape = tuple(images.shape)
        raise UserError(f"{where}: images must be float32 NCHW, got {images.dtype} {shape}")
    if images.numel() == 0:
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise UserError(f"{where}: images must lie in [0, 1], got [{low:g}, {high:g}]")


class Attack(Component):
    """From images and labels to adversarial images.

    A subclass stores its parameters as attributes of the same names, declares its ``traits`` and
    implements :meth:`perturb`.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(version=0, passes="0")

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} does not implement perturb")

    def __call__(
        self,
        logits_fn: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor,
        seed: int = 0,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Attack ``logits_fn``.

        Args:
            logits_fn: images float32 (n, C, H, W) in [0, 1] to logits (n, classes); or a
                :class:`purifiers.core.defence.Defence`, which is also told the indices.
            labels: true labels, int64 (n,).
            seed: with an image's index it decides that image's noise.
            indices: the images' indices in their data set; 0 ... n-1 by default.

        Returns:
            Adversarial images, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: images of the wrong type or range, or labels that do not fit.
            RuntimeError: the result is not finite, leaves [0, 1] or the eps ball.
        """
        name = type(self).__name__
        check_images(images, name)
        if labels.shape != images.shape[:1]:
            raise UserError(f"{name}: {len(images)} images but labels of shape {labels.shape}")
        where = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
        adversarial = self.perturb(as_target(logits_fn), images, labels, seed, where).detach()
        self._check(images, adversarial)
        return adversarial

    def _check(self, images: Tensor, adversarial: Tensor) -> None:
        name = type(self).__name__
        if adversarial.shape != images.shape or adversarial.dtype != torch.float32:
            raise RuntimeError(f"{name} changed the shape or type of the images")
        if not torch.isfinite(adversarial).all():
            raise RuntimeError(f"{name} made images that are not finite")
        if adversarial.numel() and (adversarial.min() < 0 or adversarial.max() > 1):
            raise RuntimeError(f"{name} left the pixel range [0, 1]")
        shift = (adversarial - images).flatten(1)
        eps, radius = getattr(self, "eps", None), getattr(self, "radius", None)
        if self.traits.norm == "linf" and eps is not None and shift.numel():
            distance = float(shift.abs().max())
            if distance > eps + 1e-6:
                raise RuntimeError(f"{name} left its ball: {distance:g} > eps {eps:g}")
        if self.traits.norm == "l2" and radius is not None and shift.numel():
            distance = float(shift.norm(dim=1).max())
            if distance > radius * (1 + 1e-5) + 1e-6:
                raise RuntimeError(f"{name} left its ball: {distance:g} > radius {radius:g}")


class Classifier(Component, nn.Module):
    """Images to logits, with named inner features.

    Attributes:
        shape: (channels, height, width) of the images.
        classes: number of classes.
        TAPS: names of the inner representations, shallow to deep.
    """

    traits: ClassVar[ClassifierTraits] = ClassifierTraits(version=0)
    TAPS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.classes = classes

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """The named inner representations, computing no further than the deepest one.

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            taps: names out of ``TAPS``.

        Returns:
            One tensor (n, channels, height, width) per name.

        Raises:
            UserError: this classifier has no such representation.
        """
        raise UserError(f"{type(self).__name__} has no inner representations to tap")


class Method(Component, nn.Module):
    """A purifier: images to images of the same shape.

    Attributes:
        traits: what it declares, see CONTRIBUTING.md.
        stored_examples: adversarial examples of all training images, float32 (n, C, H, W), for each
            classifier that the method is fitted on; empty: the method makes them when needed.
        recipe: how its weights are trained (fitted methods only).
    """

    traits: ClassVar[MethodTraits] = MethodTraits(version=0)
    stored_examples: Sequence[npt.NDArray] = ()
    recipe: Recipe

    @property
    def random(self) -> bool:
        """Whether two seeds give two outputs, under the parameters of this instance."""
        condition = self.traits.random
        names = () if isinstance(condition, bool) else condition
        return self.traits.is_random({name: getattr(self, name) for name in names})

    def bind(self, classifier: Classifier | None, shape: Sequence[int]) -> None:
        """Build what depends on the frozen classifier or on the images' shape (C, H, W)."""

    def fit_on(self, classifiers: Sequence[Classifier], images: int) -> None:
        """Called before fitting: on which frozen classifiers, and on how many training images.

        By default a method is fitted on the classifier that it is bound to. A method that can be
        fitted on several declares ``Fit(several_classifiers=True)`` and overrides this.

        Raises:
            UserError: several, for a method that listens to one.
        """
        if len(classifiers) > 1:
            raise UserError(f"{type(self).__name__} cannot be fitted on several classifiers")

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Scalar training loss of one batch (fitted methods only)."""
        raise TypeError(f"{type(self).__name__} is not fitted")

    def example(self, number: int, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Adversarial training examples against classifier ``number`` of those that the method is
        fitted on, float32 (n, C, H, W); from a run of the fit to the next they are the same."""
        raise TypeError(f"{type(self).__name__} is not fitted on examples")

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images.

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            seed: with an image's index it decides that image's noise.
            indices: the images' indices in their data set; 0 ... n-1 by default.

        Returns:
            float32 (n, C, H, W) in [0, 1].
        """
        raise TypeError(f"{type(self).__name__} does not implement purify")

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """One step of an iterative purification; the whole of it where there is only one."""
        return self.purify(images, seed, indices)

    def unrolled(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The same images as :meth:`purify`, with the best gradient there is through the inner
        gradients of an iterative purification; that of :meth:`purify` where it has none."""
        return self.purify(images, seed, indices)

    def own_pass(self, images: Tensor) -> Tensor:
        """One forward pass of the network that the method brings, for as many images: what
        ``traits.network.passes`` counts."""
        raise TypeError(f"{type(self).__name__} brings no network")

    def detector_logit(self, images: Tensor) -> Tensor:
        """How adversarial the method's own detector finds each image: a logit (n,), high for
        adversarial. Methods that provide ``detector_logit`` have one."""
        raise UserError(f"{type(self).__name__} has no detector that could be attacked")

    def detected(self, images: Tensor) -> Tensor:
        """Which images the method's own detector refuses, bool (n,). Methods that
        provide ``detected`` have one."""
        raise UserError(f"{type(self).__name__} has no detector that decides")

    def score(self, images: Tensor) -> Tensor:
        """Gradient of the log-density that the method learned, (n, C, H, W). Methods that
        provide ``score`` have one."""
        raise UserError(f"{type(self).__name__} has no score that could be attacked")


def frozen(module: nn.Module) -> nn.Module:
    """Switch to evaluation mode and take no gradients of the parameters; returns ``module``."""
    return module.eval().requires_grad_(False)


def default_indices(images: Tensor, indices: Sequence[int] | Tensor | None) -> Tensor:
    """The given indices as a tensor, or 0 ... n-1."""
    return torch.arange(len(images)) if indices is None else torch.as_tensor(indices)


def build(cls: type, *context: Any, **parameters: Any) -> Any:
    """Construct a component.

    Raises:
        UserError: a parameter the component does not have, or a length out of range.
    """
    declared = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in declared.values()):
        for name in parameters:
            if name not in declared:
                raise UserError(f"{cls.__name__} has no parameter {name!r}")
    return cls(*context, **parameters)
