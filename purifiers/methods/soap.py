"""SOAP (Shi et al. 2021): descend the self-supervised loss that the classifier was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.core.component import Classifier, Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.self_supervision import Joint, Views, auxiliary_losses, check_task, head_of
from purifiers.core.traits import MethodTraits, TrainedWith

DETECTOR_SCALE = 100.0
"""Weight of the auxiliary loss in upstream's auxiliary-aware attack, CE - 100 beta L_aux."""


class Soap(Method):
    """For each radius e delta, e = 0 ... levels, ``steps`` sign steps of length delta from the
    image down the auxiliary loss; of the results each image keeps the one whose auxiliary loss is
    lowest, the smallest radius in a tie (`Mishne-Lab/SOAP`, ``purify``).

    Not fitted: classifier and auxiliary head are trained together, by the training ``soap``.

    Args:
        task: ``reconstruction``, ``rotation``: of the head that the classifier has;
            ``label_consistency``: any classifier.
        delta: L-infinity; 4/255 upstream on CIFAR, .1 on MNIST.
        steps: 5 upstream.
        levels: 10 upstream. Beyond ``steps`` radii are out of reach, and repeat what is there.

    Label consistency compares an image with one random view, drawn per image and kept for all
    steps and radii, so that their losses compare. Upstream's second view is always the same, and
    upstream lets the whole batch choose one radius.
    """

    traits = MethodTraits(
        version=1,
        budget=("steps", "levels"),
        passes="3 * steps * (steps + 1)",  # two views; what radii share is computed once
        random={
            "task": ("label_consistency",)
        },  # label consistency, the default, looks at random views; other tasks do not
        provides=("detector_logit",),
        trained_with=TrainedWith(training="soap", same=("task",)),
    )

    def __init__(
        self,
        *,
        task: str = "label_consistency",
        delta: Length = "4/255",
        steps: int = 5,
        levels: int = 10,
    ) -> None:
        super().__init__()
        check_task("soap", task)
        self.task, self.delta = task, delta
        for name, value in (("steps", steps), ("levels", levels)):
            if value < 1:
                raise UserError(f"soap: {name} is {value}: at least 1")
        self.steps, self.levels = steps, levels
        self._classifier: list[Classifier] = []  # in a list, so that its weights are not ours
        self._head: list[Joint | None] = []

    def bind(self, classifier: Classifier | None, shape: Sequence[int]) -> None:
        """Ask the classifier for the head of the task.

        Raises:
            UserError: no classifier, or one without such a head.
        """
        if classifier is None:
            raise UserError("soap: purifies with the classifier's own auxiliary task; give it one")
        self._classifier = [classifier]
        self._head = [head_of(classifier, self.task, "soap")]

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Differentiable; a sign's own derivative is zero, and so is that of the choice."""
        views = self._views(images, seed, indices)
        best, lowest = images, self._losses(images, views)
        farthest = images
        for level in range(1, min(self.levels, self.steps) + 1):
            # the first steps are those of the level before: its radius was wide enough for them
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
        """One descending step at the smallest radius."""
        return self._descend(images, images, self.delta, self._views(images, seed, indices))

    def detector_logit(self, images: Tensor) -> Tensor:
        """100 L_aux, (n,), so that an auxiliary-aware attack with trade-off t is upstream's with
        beta = t / (1 - t), but for a constant. Random views are replaced by upstream's fixed one,
        for an attacker does not know the draw."""
        return DETECTOR_SCALE * auxiliary_losses(*self._bound(), images, Views.fixed(images))

    def _bound(self) -> tuple[Classifier, Joint | None]:
        if not self._classifier:
            raise UserError("soap: bind a classifier first")
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
