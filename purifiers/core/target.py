"""What an attack is given: a model to query, and the gradient of its loss by the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from purifiers.core.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, classes) and labels (n,) to one loss per image (n,)."""

# first index of an attacker's draws: no data set has so many images
FIRST_DRAW = 1 << 40

PURIFIED = 128
"""Images purified together where no gradient goes through it, on a processor. Our choice:
PixelDefend's many small operations take as long for a few images as for a hundred."""


class Target:
    """A model under attack: a plain ``images -> logits`` function, or a
    :class:`purifiers.core.defence.Defence`.

    A random model draws fresh noise at every query. An image's draws depend on its index and on
    how often *it* was asked, not on its batch mates.

    Attributes:
        model: what is attacked.
        stochastic: two queries of one image may differ.
        eot_samples: draws behind every gradient and every answer (expectation over
            transformation, Athalye et al. 2018, section 4.2).
        eot_combine: ``"mean"`` averages the draws' gradients, ``"sign"`` their signs (what
            ``jmyoon1/adp`` does).
        chunk: images per gradient computation, so that activations stay in the processor's
            cache; None for all at once.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model = model
        self.stochastic: bool = getattr(model, "stochastic", False)
        self.eot_samples: int = getattr(model, "eot_samples", 1)
        self.eot_combine: str = getattr(model, "eot_combine", "mean")
        self.chunk: int | None = getattr(model, "chunk", None)
        self._straight_through: bool = getattr(model, "straight_through", False)
        self._per_image: bool = getattr(model, "per_image", False)
        self._asked: Counter[int] = Counter()

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """Logits (n, classes), differentiable: one draw, or the mean of ``eot_samples``."""
        return self._expected(self.model, images, indices)

    def draw(self, images: Tensor, indices: Tensor) -> Tensor:
        """Logits (n, classes) of one draw."""
        return self._ask(self.model, images, indices)

    def purify(self, images: Tensor, indices: Tensor) -> Tensor:
        """One draw of what the defence makes of the images; the images, where nothing purifies."""
        if not hasattr(self.model, "purify"):
            return images
        return self._ask(self.model.purify, images, indices)

    def differentiable(
        self, images: Tensor, indices: Tensor
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
        """A function of images and indices to logits of one draw, and the images (n, C, H, W) at
        which its gradient is the one sought: purified ones, where a gradient passes unchanged."""
        if not self._straight_through:
            return self.draw, images
        size = PURIFIED if self.chunk else max(len(images), 1)
        parts = zip(images.split(size), indices.split(size), strict=True)
        with torch.no_grad():
            purified = torch.cat([self.purify(*part) for part in parts])
        return lambda images, indices: self.classify(images), purified

    def classify(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images that are purified already."""
        bare: Callable[[Tensor], Tensor] = getattr(self.model, "classify", self.model)
        return bare(images)

    def bare(self) -> Target:
        """The classifier alone as a target, for images that are purified already."""
        made = Target(self.classify)
        made.chunk = self.chunk
        return made

    def detector_logit(self, images: Tensor) -> Tensor:
        """The logit (n,) of the defence's detector at these very images, high for adversarial.

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

    def unbroken(self, logits: Tensor, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Which images (n,) keep their label, given their logits.

        A model that answers in low precision has its successes confirmed in float32.
        """
        kept = logits.argmax(dim=1) == labels
        exact = getattr(self.model, "exact", None)
        if exact is None or kept.all():
            return kept
        lost = ~kept
        with torch.no_grad():
            answer = self._expected(exact, images[lost], indices[lost.to(indices.device)])
        kept[lost] = answer.argmax(dim=1) == labels[lost]
        return kept

    def _expected(self, query: Callable[..., Tensor], images: Tensor, indices: Tensor) -> Tensor:
        draws = self.eot_samples
        if draws == 1:
            return self._ask(query, images, indices)
        copies = images.repeat(draws, 1, 1, 1)
        return _mean(self._ask(query, copies, indices.repeat(draws)), draws)

    def _part(self, name: str) -> Callable[[Tensor], Tensor]:
        part: Callable[[Tensor], Tensor] | None = getattr(self.model, name, None)
        if part is None:
            raise UserError(
                f"this attack goes against a {name} and the model has none: attack a defence with "
                "a purifier that has one, or name one as `auxiliary`"
            )
        return part

    def _ask(self, query: Callable[..., Tensor], images: Tensor, indices: Tensor) -> Tensor:
        if not self._per_image:
            return query(images)
        return query(images, self._fresh(indices) if self.stochastic else indices)

    def _fresh(self, indices: Tensor) -> Tensor:
        rows = []
        for index in indices.tolist():
            self._asked[index] += 1
            rows.append(index + FIRST_DRAW * self._asked[index])
        return torch.tensor(rows, dtype=torch.int64)


def as_target(model: Callable[..., Tensor] | Target) -> Target:
    """A target of a model; a target stays what it is."""
    return model if isinstance(model, Target) else Target(model)


def input_gradient(
    target: Callable[..., Tensor], images: Tensor, labels: Tensor, indices: Tensor, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of each image's loss with respect to that image alone.

    Args:
        target: a :class:`Target`, or any function of images and indices to logits.
        images, labels, indices: (n, C, H, W), (n,) and (n,).

    Returns:
        gradient (n, C, H, W), logits (n, classes) and losses (n,), all detached; with several
        draws per image their means, or the mean of the gradients' signs.

    Raises:
        RuntimeError: logits or gradients that are not finite: a broken model must not count as a
            robust one.
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
    if draws == 1:
        return gradient, logits, losses
    if target.eot_combine == "sign":
        gradient = gradient.sign()
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


def finite(values: Tensor, what: str = "logits") -> Tensor:
    """Return ``values`` unchanged.

    Raises:
        RuntimeError: they are not finite: a broken model must not count as a robust one.
    """
    if not torch.isfinite(values).all():
        raise RuntimeError(f"the attacked model gave {what} that are not finite")
    return values
