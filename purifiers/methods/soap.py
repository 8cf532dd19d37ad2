"""SOAP (Shi et al. 2021): descend the self-supervised loss that the classifier was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from purifiers.core.choices import Task
from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count
from purifiers.core.self_supervision import Joint, Views, auxiliary_losses, head_of
from purifiers.core.traits import MethodTraits, TrainedWith

DETECTOR_SCALE = 100.0
"""Weight of the auxiliary loss in upstream's auxiliary-aware attack, CE - 100 beta L_aux."""


class Soap(Method):
    """Descend the auxiliary loss at several radii and keep the best result per image.

    For each radius e delta, e = 0 ... levels, take ``steps`` sign steps of length delta from the
    image down the auxiliary loss. Each image keeps the result with the lowest auxiliary loss, in a
    tie that of the smallest radius (`Mishne-Lab/SOAP`, ``purify``).

    Nothing is fitted: the training ``soap`` trains classifier and auxiliary head together.

    Args:
        task: ``reconstruction`` or ``rotation``, which need a classifier with that head; or
            ``label_consistency``, for any classifier.
        delta: L-infinity; 4/255 upstream on CIFAR, .1 on MNIST.
        steps: 5 upstream.
        levels: 10 upstream. Radii beyond ``steps`` are out of reach and repeat the largest one.

    Label consistency compares an image with one random view. The view is drawn per image and used
    for all steps and radii, so that their losses are comparable. Upstream's second view is always
    the same, and upstream chooses one radius for the whole batch.

    Raises:
        UserError: an unknown task, or a count below 1.
    """

    traits = MethodTraits(
        version=2,
        budget=("steps", "levels"),
        passes="3 * steps * (steps + 1)",  # of two views; steps shared by radii are computed once
        random={"task": ("label_consistency",)},  # the only task with random views
        provides=("detector_logit",),
        trained_with=TrainedWith(training="soap", same=("task",)),
    )

    def __init__(
        self,
        *,
        task: Task = "label_consistency",
        delta: Length = "4/255",
        steps: Count = 5,
        levels: Count = 10,
    ) -> None:
        super().__init__()
        self.task, self.delta = task, delta
        self.steps, self.levels = steps, levels
        self._classifier: list[nn.Module] = []  # in a list, so that it is no submodule
        self._head: list[Joint | None] = []

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Store the classifier and its head for the task.

        Raises:
            UserError: no classifier, or one without such a head.
        """
        if classifier is None:
            raise UserError(
                "soap: no classifier, but it purifies with its auxiliary task; give it one"
            )
        self._classifier = [classifier]
        self._head = [head_of(classifier, self.task, "soap")]

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images.

        Differentiable, but the derivatives of the signs and of the choice between radii are zero.
        """
        views = self._views(images, seed, indices)
        best, lowest = images, self._losses(images, views)
        farthest = images
        for level in range(1, min(self.levels, self.steps) + 1):
            # the first steps equal those of the level before, whose radius did not clip them
            farthest = self._descend(farthest, images, level * self.delta, views)
            purified = farthest
            for _ in range(self.steps - level):
                purified = self._descend(purified, images, level * self.delta, views)
            losses = self._losses(purified, views)
            lower = losses < lowest
            best = torch.where(lower[:, None, None, None], purified, best)
            lowest = torch.where(lower, losses, lowest)
        return best

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """One descent step at the smallest radius."""
        return self._descend(images, images, self.delta, self._views(images, seed, indices))

    def detector_logit(self, images: Tensor) -> Tensor:
        """Detector logit 100 L_aux, (n,).

        With it an auxiliary-aware attack of trade-off t is upstream's attack with beta = t / (1 -
        t), except for a constant. Random views are replaced by upstream's fixed one, because an
        attacker does not know the draw.
        """
        return DETECTOR_SCALE * auxiliary_losses(*self._bound(), images, Views.fixed(images))

    def _bound(self) -> tuple[nn.Module, Joint | None]:
        return self._classifier[0], self._head[0]

    def _views(
        self, images: Tensor, seed: int, indices: Sequence[int] | Tensor | None
    ) -> Views | None:
        if self.task != "label_consistency":
            return None
        return Views.drawn(images, seed, default_indices(images, indices), "soap")

    def _losses(self, images: Tensor, views: Views | None) -> Tensor:
        with torch.no_grad():
            return auxiliary_losses(*self._bound(), images, views)

    def _descend(
        self, purified: Tensor, images: Tensor, radius: float, views: Views | None
    ) -> Tensor:
        with torch.enable_grad():
            leaf = purified.detach().requires_grad_(True)
            losses = auxiliary_losses(*self._bound(), leaf, views)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        purified = purified - self.delta * gradient.sign()
        low, high = images - radius, images + radius
        return torch.minimum(torch.maximum(purified, low), high).clamp(0.0, 1.0)
