"""Base classes of attacks, classifiers and methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.binding import component_name, guard
from purifiers.core.errors import UserError
from purifiers.core.finite import checked_at_end
from purifiers.core.images import check_images, check_input, check_labels
from purifiers.core.logits import check_model
from purifiers.core.modes import attackable, refuse_training_mode, types_explained
from purifiers.core.noise import derive_seed
from purifiers.core.parameters import alternatives, checked, is_restricted
from purifiers.core.precision import computing
from purifiers.core.ranges import Count
from purifiers.core.recipe import Recipe
from purifiers.core.target import Target, as_target
from purifiers.core.traits import AttackTraits, ClassifierTraits, MethodTraits, check_rules

if TYPE_CHECKING:
    from purifiers.core.phase import Phase
    from purifiers.core.training_images import Pixels


class Component:
    """Base of every component that a YAML file can name.

    Parameters annotated ``Length`` or ``Radius`` accept text such as ``"8/255"``. They and those
    annotated with ``Literal``, a choice of :mod:`purifiers.core.choices` or a range of
    :mod:`purifiers.core.ranges` are converted and checked before ``__init__`` runs, and so are the
    ``rules`` of the traits, however the component is constructed.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _with_numbers(vars(cls)["__init__"])  # type: ignore[method-assign]


def _with_numbers(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``init`` so that it receives checked values, which meet the component's rules."""
    ranged = {
        name: types
        for name, annotation in init.__annotations__.items()
        if isinstance(annotation, str) and is_restricted(types := alternatives(annotation))
    }
    signature = inspect.signature(init)

    @functools.wraps(init)
    def converted(self: Any, *context: Any, **parameters: Any) -> None:
        call = signature.bind(self, *context, **parameters)
        call.apply_defaults()
        for name, types in ranged.items():
            where = f"{type(self).__name__}: {name}"
            call.arguments[name] = checked(types, call.arguments[name], where)
        if (traits := getattr(self, "traits", None)) is not None:
            check_rules(traits.rules, call.arguments, component_name(type(self)))
        init(*call.args, **call.kwargs)

    return converted


class Attack(Component):
    """Base of attacks: images and labels to adversarial images.

    A subclass stores its parameters as attributes of the same names, declares its ``traits`` and
    implements :meth:`perturb`.
    """

    traits: ClassVar[AttackTraits] = AttackTraits(version=0, passes="0")
    step_path = ""
    """How the last call ran its step, see :class:`purifiers.core.capture.Captured`."""
    flags: tuple[str, ...] = ()
    """Warnings about the attacked model from the attack's package, of all calls."""

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
        precision: str | None = None,
    ) -> Tensor:
        """Adversarial images against ``logits_fn``.

        Args:
            logits_fn: images float32 (n, C, H, W) in [0, 1] to logits (n, classes); or a
                :class:`purifiers.core.defence.Defence`, which also receives the indices. A module
                must be in evaluation mode; a function may call a network in training mode.
            images: float32 (n, C, H, W) in [0, 1].
            labels: true labels, int64 (n,).
            seed: random seed; an image's noise depends on the seed and the image's index alone.
            indices: the images' indices in their data set; 0 ... n-1 by default.
            precision: of the model, see :func:`purifiers.core.precision.computing`; None: float32,
                or that of the training that the attack is part of. Successes are confirmed in
                float32. Attacks that declare ``float32_only`` always use float32.

        Returns:
            Adversarial images, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: images of the wrong type or range, labels that do not fit, an unknown
                precision, something that is no function, or a module with batch normalisation or
                dropout in training mode.
            RuntimeError: the model's logits or gradients are not finite; the adversarial images are
                not finite or leave [0, 1] or the eps ball.
        """
        name = type(self).__name__
        check_images(images, name)
        if not self.traits.model_free:
            check_model(logits_fn)
        target = as_target(logits_fn)
        target.largest_label = check_labels(labels, images, name)
        refuse_training_mode(target.model, name)
        rows = default_indices(images, indices)
        if self.traits.float32_only:
            precision = "float32"
        with attackable(), computing(precision, images.device):
            # copies, because a model may work in place and the caller's images stay
            images, labels = images.detach().clone(), labels.clone()
            with checked_at_end(images.device), types_explained(target.model, name):
                adversarial = self.perturb(target, images, labels, seed, rows).detach()
            self._check(images, adversarial)
        self.step_path = target.step_path
        return adversarial

    def _check(self, images: Tensor, adversarial: Tensor) -> None:
        name = type(self).__name__
        if adversarial.shape != images.shape or adversarial.dtype != torch.float32:
            raise RuntimeError(f"{name}: adversarial images changed in shape or type")
        if not torch.isfinite(adversarial).all():
            raise RuntimeError(f"{name}: adversarial images are not finite")
        if adversarial.numel() and (adversarial.min() < 0 or adversarial.max() > 1):
            raise RuntimeError(f"{name}: adversarial images leave the pixel range [0, 1]")
        perturbation = (adversarial - images).flatten(1)
        eps, radius = getattr(self, "eps", None), getattr(self, "radius", None)
        if self.traits.norm == "linf" and eps is not None and perturbation.numel():
            distance = float(perturbation.abs().max())
            if distance > eps + 1e-6:
                raise RuntimeError(f"{name}: perturbation {distance:g} exceeds eps {eps:g}")
        if self.traits.norm == "l2" and radius is not None and perturbation.numel():
            distance = float(perturbation.norm(dim=1).max())
            if distance > radius * (1 + 1e-5) + 1e-6:
                raise RuntimeError(f"{name}: perturbation {distance:g} exceeds radius {radius:g}")


class Classifier(Component, nn.Module):
    """Base of classifiers: images to logits, with named inner representations.

    Attributes:
        shape: (channels, height, width) of the images.
        classes: number of classes.
        TAPS: names of the inner representations, from the first layer to the last.
    """

    traits: ClassVar[ClassifierTraits] = ClassifierTraits(version=0)
    TAPS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: Sequence[Count], classes: Count) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.classes = classes

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """Inner representations by name; layers behind the last one named are not computed.

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            taps: names from ``TAPS``.

        Returns:
            One tensor (n, channels, height, width) per name.

        Raises:
            UserError: this classifier has no such representation.
        """
        raise UserError(f"{type(self).__name__} has no inner representations to tap")

    def load_pretrained(self) -> dict[str, Any]:
        """Load weights that the classifier brings but does not load when it is constructed.

        Returns:
            Entries for the run's record, such as checksums of the files.

        Raises:
            UserError: the weights are missing or do not fit.
        """
        return {}


class Method(Component, nn.Module):
    """Base of methods, such as purifiers: images to images of the same shape.

    Attributes:
        traits: declared properties; CONTRIBUTING.md lists them.
        needs_binding: whether the class overrides :meth:`bind`; such a method refuses to purify
            before it is bound. Set by the base class.
        is_bound: whether :meth:`bind` was called. Set by the base class.
        bound_channels: number of image channels passed to :meth:`bind`; None before it. Set by the
            base class.
        stored_examples: adversarial examples of all training images, float32 (n, C, H, W), for each
            classifier that the method is fitted on. Empty: the method generates them when needed.
        recipe: training settings of its weights (fitted methods only).
        batch_size: images per call of the network of :meth:`equipped` (``batch_dependent`` only).
    """

    traits: ClassVar[MethodTraits] = MethodTraits(version=0)
    needs_binding: ClassVar[bool] = False
    is_bound: bool = False
    bound_channels: int | None = None
    stored_examples: Sequence[npt.NDArray] = ()
    recipe: Recipe
    batch_size: int

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        guard(cls)

    def forward(self, images: Tensor) -> Tensor:
        """Purified images; a random method draws fresh noise at every call.

        The noise is reproducible from the number of calls. :meth:`purify` takes a seed instead.

        Raises:
            UserError: see :func:`purifiers.core.images.check_input`.
        """
        check_input(images, component_name(type(self)))
        self._calls = getattr(self, "_calls", 0) + 1
        return self.purify(images, derive_seed("call", self._calls))

    @property
    def random(self) -> bool:
        """Whether the output depends on the seed, under the parameters of this instance."""
        condition = self.traits.random
        names = () if isinstance(condition, bool) else condition
        return self.traits.is_random({name: getattr(self, name) for name in names})

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build the parts that depend on the frozen classifier or on the image shape (C, H, W).

        Raises:
            UserError: see :meth:`check_shape`, which is called before every override.
        """
        self.check_shape(shape)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Check the shape (C, H, W) of the images against the trait ``images``.

        Raises:
            UserError: the number of channels or the size does not fit.
        """
        images = self.traits.images
        parameters = {name: getattr(self, name) for name in images.parameter_names()}
        images.check(shape, parameters, component_name(type(self)))

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        """Prepare a fit on ``classifiers``; called before fitting.

        By default a method is fitted on the classifier that it is bound to. A method that can be
        fitted on several declares ``Fit(several_classifiers=True)`` and overrides this.

        Args:
            classifiers: the frozen classifiers to fit on.
            images: number of training images.

        Raises:
            UserError: several classifiers, for a method that is fitted on one.
        """
        if len(classifiers) > 1:
            raise UserError(f"{type(self).__name__} cannot be fitted on several classifiers")

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Training loss of one batch, a scalar (fitted methods only)."""
        raise TypeError(f"{type(self).__name__} is not fitted")

    def example(self, number: int, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Adversarial training examples, float32 (n, C, H, W); the same in every run of the fit.

        Args:
            number: position of the attacked classifier among those that the method is fitted on.
        """
        raise TypeError(f"{type(self).__name__} is not fitted on examples")

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images.

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            seed: random seed; an image's noise depends on the seed and the image's index alone.
            indices: the images' indices in their data set; 0 ... n-1 by default.

        Returns:
            float32 (n, C, H, W) in [0, 1].
        """
        raise TypeError(f"{type(self).__name__} does not implement purify")

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Images after one step of an iterative purification; by default :meth:`purify`."""
        return self.purify(images, seed, indices)

    def states(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> list[Tensor]:
        """The images after each step of an iterative purification; the last are :meth:`purify`'s.

        By default the purified images alone. A method that overrides this declares the number of
        images in the trait ``states``.
        """
        return [self.purify(images, seed, indices)]

    def unrolled(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The images of :meth:`purify`, differentiable through the purification's inner gradients.

        An iterative purification that follows gradients overrides this with the most exact
        derivative that it can compute. By default the gradient is that of :meth:`purify`.
        """
        return self.purify(images, seed, indices)

    def transformed(self, images: Tensor, seed: int, indices: Tensor) -> Tensor | None:
        """Images after the random transform that precedes the method's network, for pictures.

        None by default: the method has no such transform.

        Args:
            images, seed, indices: as for :meth:`purify`, which transforms them alike.

        Returns:
            float32 (n, C, H, W) in [0, 1].
        """
        return None

    def equipped(self, classifier: nn.Module) -> nn.Module:
        """The network that classifies purified images; by default the classifier itself.

        A method that also restores the classifier's embedding declares the trait ``restores`` and
        returns a frozen copy of the classifier with its restorer inside. It also declares
        ``batch_dependent`` if the network's logits depend on the other images of the batch or on
        the batches before; such a network is never attacked.

        Args:
            classifier: the defended classifier, frozen.

        Raises:
            UserError: the restorer does not fit the classifier.
        """
        return classifier

    def next_phase(self, pixels: Pixels, labels: npt.NDArray) -> Phase | None:
        """The training that follows that of :meth:`fit_loss`, or None.

        Called once the weights of the first training are final. Parameters of the second training
        must not require gradients before.

        Args:
            pixels: all training images, uint8 or float32 (n, C, H, W).
            labels: int64 (n,).
        """
        return None

    def end_fit(self) -> None:
        """Drop what only the fit needs, such as buffers that its checkpoints hold.

        Called once after the last training; the weights are saved afterwards.
        """

    def own_pass(self, images: Tensor) -> Tensor:
        """One forward pass of the method's own network for ``images``.

        ``traits.network.passes`` counts such passes.
        """
        raise TypeError(f"{type(self).__name__} brings no network")

    def detector_logit(self, images: Tensor) -> Tensor:
        """Logit (n,) of the method's own detector, high for adversarial images.

        Implemented by methods that provide ``detector_logit``.
        """
        raise UserError(f"{type(self).__name__} has no detector that could be attacked")

    def detected(self, images: Tensor) -> Tensor:
        """Whether the method's own detector rejects each image, bool (n,).

        Implemented by methods that provide ``detected``.
        """
        raise UserError(f"{type(self).__name__} has no detector that decides")

    def score(self, images: Tensor) -> Tensor:
        """Gradient of the log-density that the method learned, (n, C, H, W).

        Implemented by methods that provide ``score``.
        """
        raise UserError(f"{type(self).__name__} has no score that could be attacked")


def equipped(classifier: Any, methods: Iterable[Method]) -> Any:
    """The network that classifies images purified by ``methods``, see :meth:`Method.equipped`."""
    for method in methods:
        classifier = method.equipped(classifier)
    return classifier


def frozen(module: nn.Module) -> nn.Module:
    """Switch to evaluation mode, disable gradients of the parameters and return ``module``."""
    return module.eval().requires_grad_(False)


def default_indices(images: Tensor, indices: Sequence[int] | Tensor | None) -> Tensor:
    """``indices`` as a tensor int64 (n,); 0 ... n-1 if None.

    Raises:
        UserError: another number of indices than images, or indices that are not integers.
    """
    if indices is None:
        return torch.arange(len(images))
    rows = torch.as_tensor(indices)
    if rows.shape != images.shape[:1] or rows.is_floating_point() or rows.is_complex():
        raise UserError(
            f"indices are {str(rows.dtype).removeprefix('torch.')} of shape {tuple(rows.shape)} "
            f"for {len(images)} images; give one integer per image"
        )
    return rows.long()


def build(cls: type, *context: Any, **parameters: Any) -> Any:
    """Construct a component.

    Raises:
        UserError: a parameter that the component does not have, or a number out of range.
    """
    accepted = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for name in parameters:
            if name not in accepted:
                raise UserError(f"{cls.__name__} has no parameter {name!r}")
    return cls(*context, **parameters)
