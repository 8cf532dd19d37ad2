"""Access of an attack to the attacked model: queries, and gradients of a loss by the images."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purifiers.core.active import selected
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.logits import as_logits
from purifiers.core.precision import at_least_float32, computing, declared

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, classes) and labels (n,) to the loss of each image (n,)."""

# added to an image's index per query of a random defence; no data set has so many images
FIRST_DRAW = 1 << 40

PURIFY_BATCH = 128
"""Images per purification without gradients on a CPU. Our choice: PixelDefend's many small
operations take as long for a few images as for a hundred."""


class Target:
    """A model under attack: a plain ``images -> logits`` function, or a
    :class:`purifiers.core.defence.Defence`.

    A random model draws fresh noise at every query. An image's noise depends on its index and on
    the number of its earlier queries, not on the other images of the batch.

    Attributes:
        model: the attacked model.
        stochastic: whether two queries of one image may differ.
        eot_samples: draws per gradient and per output (expectation over transformation, Athalye
            et al. 2018, section 4.2).
        eot_combine: what is averaged over the draws, see :func:`contribution`: ``"mean"``,
            ``"sign"`` or ``"displacement"``.
        chunk: images per gradient computation, so that activations stay in the CPU's cache; None:
            all at once.
        capturable: whether each query runs the same kernels, see :mod:`purifiers.core.capture`.
        step_path: how the last attack ran its step, see :class:`purifiers.core.capture.Captured`;
            empty if it did not try to record it.
        largest_label: largest label of the attacked images, which the logits must cover; -1: their
            number is not checked.

    Raises:
        UserError: the model adapts to its queries (``batch_dependent``).
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        if getattr(model, "batch_dependent", False):
            raise UserError(
                "the attacked defence adapts its classifier to each batch of queries: attack the "
                "classifier without the adapting method and score the defence on the result"
            )
        self.model = model
        self.stochastic: bool = getattr(model, "stochastic", False)
        self.eot_samples: int = getattr(model, "eot_samples", 1)
        self.eot_combine: str = getattr(model, "eot_combine", "mean")
        self.chunk: int | None = getattr(model, "chunk", None)
        self._straight_through: bool = getattr(model, "straight_through", False)
        self._per_image: bool = getattr(model, "per_image", False)
        self.largest_label = -1
        self.step_path = ""
        self._queries: Counter[int] = Counter()

    @property
    def capturable(self) -> bool:
        return getattr(self.model, "capturable", False) and self.chunk is None

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Logits (n, classes), differentiable: one draw, or the mean of ``eot_samples``."""
        return self._expected(self.model, images, indices)

    def draw(self, images: Tensor, indices: Tensor) -> Tensor:
        """Logits (n, classes) of one draw."""
        return self.logits_of(self._query(self.model, images, indices), images)

    def purify(self, images: Tensor, indices: Tensor) -> Tensor:
        """Images purified in one draw; the images themselves if the model does not purify."""
        if not hasattr(self.model, "purify"):
            return images
        return self._query(self.model.purify, images, indices)

    def differentiable(
        self, images: Tensor, indices: Tensor
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
        """A function to differentiate, and the images (n, C, H, W) at which to differentiate it.

        The function takes images and indices and returns logits of one draw. The images are
        ``images``; purified ones if the gradient passes the purifiers unchanged.
        """
        if not self._straight_through:
            return self.draw, images
        size = PURIFY_BATCH if self.chunk else max(len(images), 1)
        parts = zip(images.split(size), indices.split(size), strict=True)
        with torch.no_grad():
            purified = torch.cat([self.purify(*part) for part in parts])
        return lambda images, indices: self.classify(images), purified

    def classify(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images that are purified already."""
        bare: Callable[[Tensor], Tensor] = getattr(self.model, "classify", self.model)
        return self.logits_of(bare(images.clone()), images)

    def judge(self) -> Target:
        """The target that decides about success: the original model, if this one is prepared."""
        judge = copy.copy(self)  # with the same count of draws
        judge.model = getattr(self.model, "exact", None) or self.model
        return judge

    def bare(self) -> Target:
        """The classifier alone as a target, for images that are purified already."""
        classifier = Target(self.classify)
        classifier.chunk = self.chunk
        return classifier

    def detector_logit(self, images: Tensor) -> Tensor:
        """Logit (n,) of the defence's detector, high for adversarial images.

        The images are not purified first.

        Raises:
            UserError: the model has no detector.
        """
        return self._part("detector_logit")(images)

    def score(self, images: Tensor) -> Tensor:
        """Gradient (n, C, H, W) of the log-density that a purifier of the defence learned.

        Raises:
            UserError: the model has no such purifier.
        """
        return self._part("score")(images)

    def unbroken(
        self,
        logits: Tensor,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        among: Tensor | None = None,
    ) -> Tensor:
        """Whether each image is still classified correctly, bool (n,), from its logits.

        Misclassifications by a prepared model, or in lower precision, are confirmed by the original
        model in float32: at most one more forward pass. A random defence repeats the draws of the
        last query of each image.

        Args:
            among: images whose success decides something, bool (n,); only theirs is confirmed.
                None: all.
        """
        correct = logits.argmax(dim=1) == labels
        exact = getattr(self.model, "exact", None)
        if exact is None and declared() != "float32":
            exact = self.model
        if exact is None:
            return correct
        rows = selected(~correct if among is None else ~correct & among)
        if not len(rows):
            return correct
        indices, rows = indices[rows.to(indices.device)], rows.to(images.device)
        with torch.no_grad(), computing("float32", images.device):
            exact_logits = self._repeated(exact, images[rows], indices)
        correct[rows] = correct[rows] | (exact_logits.argmax(dim=1) == labels[rows])
        return correct

    def _expected(self, query: Callable[..., Tensor], images: Tensor, indices: Tensor) -> Tensor:
        draws = self.eot_samples
        if draws == 1:
            return self.logits_of(self._query(query, images, indices), images)
        copies = images.repeat(draws, 1, 1, 1)
        output = self._query(query, copies, indices.repeat(draws))
        return _mean(self.logits_of(output, images), draws)

    def _repeated(self, query: Callable[..., Tensor], images: Tensor, indices: Tensor) -> Tensor:
        """The same with the draws of the last query, so that later queries draw as without it."""
        draws, made = self.eot_samples, self._queries
        if not (self._per_image and self.stochastic) or not all(
            made[index] >= draws for index in indices.tolist()
        ):
            return self._expected(query, images, indices)
        rows = [
            index + FIRST_DRAW * (made[index] - back)
            for back in range(draws)
            for index in indices.tolist()
        ]
        logits = self.logits_of(query(images.repeat(draws, 1, 1, 1), torch.tensor(rows)), images)
        return logits if draws == 1 else _mean(logits, draws)

    def logits_of(self, output: Any, images: Tensor) -> Tensor:
        """Logits (n, classes), at least float32, in what the attacked model returned.

        Args:
            images: those that the model received.

        Raises:
            UserError: there are none, or they do not cover the labels, or do not depend on images
                that require gradients.
        """
        logits = at_least_float32(as_logits(output, self.model))
        if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError(
                "this attack takes gradients, but none leads from the attacked model's logits to "
                "its images: remove torch.no_grad, detach or numpy from it, or choose an attack "
                "on scores, such as square"
            )
        if self.largest_label < 0:
            return logits
        if logits.dim() != 2:
            raise UserError(
                f"the attacked model returned a tensor of shape {tuple(logits.shape)}: it must "
                "return logits (n, classes)"
            )
        if logits.shape[1] == 1:
            raise UserError(
                "the attacked model returned one logit per image, which no attack can change into "
                "another class: return two, such as torch.cat([-logit, logit], dim=1)"
            )
        if self.largest_label >= logits.shape[1]:
            raise UserError(
                f"labels reach {self.largest_label}, but the attacked model has {logits.shape[1]} "
                "classes: number the labels from 0, or attack a model of all classes"
            )
        return logits

    def _part(self, name: str) -> Callable[[Tensor], Tensor]:
        part: Callable[[Tensor], Tensor] | None = getattr(self.model, name, None)
        if part is None:
            raise UserError(
                f"this attack goes against a {name} and the model has none: attack a defence with "
                "a purifier that has one, or set `auxiliary` to such a method"
            )
        return part

    def _query(self, query: Callable[..., Tensor], images: Tensor, indices: Tensor) -> Tensor:
        if not self._per_image:
            return query(images.clone())  # a function may work in place
        return query(images, self._draw_indices(indices) if self.stochastic else indices)

    def _draw_indices(self, indices: Tensor) -> Tensor:
        rows = []
        for index in indices.tolist():
            self._queries[index] += 1
            rows.append(index + FIRST_DRAW * self._queries[index])
        return torch.tensor(rows, dtype=torch.int64)


def as_target(model: Callable[..., Tensor] | Target) -> Target:
    """A :class:`Target` of ``model``; a target is returned unchanged."""
    return model if isinstance(model, Target) else Target(model)


def contribution(gradient: Tensor, images: Tensor, combine: str, step_size: float | None) -> Tensor:
    """What one draw of a random defence contributes to the direction of a signed step.

    ``"displacement"`` is that of `jmyoon1/adp` (``attacks/bpda_strong.py``): each draw's image
    takes a signed step of its own, clipped to [0, 1]. A saturated pixel that the gradient pushes
    outwards thus contributes nothing. The unit is one step.

    Args:
        gradient: of each draw, (n, C, H, W).
        images: where the gradient was taken, in [0, 1], same shape.
        combine: ``"mean"`` for the gradient, ``"sign"`` for its sign, ``"displacement"`` for the
            clipped step.
        step_size: length of the attack's signed step on the [0, 1] scale; None: the attack takes no
            signed steps.

    Raises:
        UserError: a displacement without a step size, or with one of 0.
    """
    if combine == "sign":
        return gradient.sign()
    if combine != "displacement":
        return gradient
    if not step_size:
        raise UserError(
            "eot: combine is displacement, which needs an attack of signed steps such as pgd or "
            "joint_score; set `combine: mean`"
        )
    # in steps, so that opposite draws cancel exactly
    return torch.clamp(gradient.sign(), -images / step_size, (1.0 - images) / step_size)


def input_gradient(
    target: Callable[..., Tensor],
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    loss: Loss,
    step_size: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of each image's loss with respect to that image alone.

    Args:
        target: a :class:`Target`, or any function of images and indices to logits.
        images, labels, indices: (n, C, H, W), (n,) and (n,).
        step_size: of an attack that only uses the gradient's sign, see :func:`contribution`.

    Returns:
        Gradient (n, C, H, W), logits (n, classes) and losses (n,), all detached. With several draws
        per image these are means over the draws. If the target combines signs or displacements,
        their mean replaces the gradient; one draw's displacement also does.

    Raises:
        UserError: the target combines displacements, and ``step_size`` is None.
        RuntimeError: logits or gradients are not finite. A broken model must not count as robust.
    """
    if not isinstance(target, Target):
        return _gradient(target, images, labels, indices, loss)
    draws = target.eot_samples
    if draws > 1:
        images, labels = images.repeat(draws, 1, 1, 1), labels.repeat(draws)
        indices = indices.repeat(draws)
    size = target.chunk or max(len(images), 1)
    query, images = target.differentiable(images, indices)
    parts = [
        _gradient(query, *rows, loss)
        for rows in zip(images.split(size), labels.split(size), indices.split(size), strict=True)
    ]
    gradient, logits, losses = (torch.cat(part) for part in zip(*parts, strict=True))
    if draws > 1 or target.eot_combine == "displacement":
        gradient = contribution(gradient, images, target.eot_combine, step_size)
    if draws == 1:
        return gradient, logits, losses
    return _mean(gradient, draws), _mean(logits, draws), _mean(losses, draws)


def _gradient(
    query: Callable[..., Tensor], images: Tensor, labels: Tensor, indices: Tensor, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits = query(leaf, indices)
        losses = loss(logits, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return finite(gradient, "gradients"), finite(logits.detach()), losses.detach()


def _mean(stacked: Tensor, draws: int) -> Tensor:
    return stacked.view(draws, len(stacked) // draws, *stacked.shape[1:]).mean(dim=0)
