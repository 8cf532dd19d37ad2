"""SOAP's joint training (Shi et al. 2021): the labels, and a task that needs none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.auxiliary import NOISE, ROTATIONS, Views, check_task, head_of, rotated
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.noise import generator
from purifiers.core.traits import TrainingTraits
from purifiers.training._base import Training


class Soap(Training):
    """CE + alpha L_aux, as `Mishne-Lab/SOAP` trains:

    - ``reconstruction``: noise .5 on the images; their logits, and the clean pixels from the head;
    - ``rotation``: noise .1, each image in four rotations; the label and the rotation of each;
    - ``label_consistency``: two random views of each image; the label of each, and the mean
      squared difference of their logits.

    Args:
        task: see above; a classifier with a head for it is needed, but for label consistency.
        alpha: weight of the auxiliary loss; 1 upstream.
        epochs, batch_size, learning_rate, weight_decay, milestones: upstream's defaults; the rate
            would first drop when the 100 epochs are over.

    Upstream's views are one for a whole batch, their noise is never negative, and the second one
    is always the same; here each image has two random views of its own.
    """

    traits = TrainingTraits(
        version=1,
        budget=("epochs", "learning_rate", "optimizer", "schedule"),
        passes="6 * epochs",  # label consistency; 3 for reconstruction, 12 for rotation
    )

    def __init__(
        self,
        *,
        task: str = "label_consistency",
        alpha: float = 1.0,
        epochs: float = 100,
        weight_decay: float = 1e-4,
        milestones: tuple[float, ...] = (),
        **common: Any,
    ) -> None:
        super().__init__(epochs=epochs, weight_decay=weight_decay, milestones=milestones, **common)
        check_task("soap", task)
        if alpha < 0.0:
            raise UserError(f"soap: alpha is {alpha}: the weight of a loss, at least 0")
        self.task, self.alpha = task, alpha

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        head = head_of(classifier, self.task, "soap")
        if head is None:
            views = (Views.drawn(images, seed, None, tag) for tag in ("first view", "second view"))
            logits = classifier(torch.cat([view(images) for view in views]))
            one, two = logits.chunk(2)
            auxiliary = functional.mse_loss(one, two)
        elif self.task == "reconstruction":
            logits, made = head.joint(self._noisy(images, seed))
            auxiliary = functional.mse_loss(made, images)
        else:
            logits, guesses = head.joint(self._noisy(rotated(images), seed))
            truth = torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(images))
            auxiliary = functional.cross_entropy(guesses, truth)
        repeated = labels.repeat(len(logits) // len(labels))
        return functional.cross_entropy(logits, repeated) + self.alpha * auxiliary

    def _noisy(self, images: Tensor, seed: int) -> Tensor:
        noise = torch.randn(images.shape, generator=generator(seed, "soap")).to(images.device)
        return (images + NOISE[self.task] * noise).clamp(0.0, 1.0)
