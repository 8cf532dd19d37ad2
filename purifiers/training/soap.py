"""SOAP's joint training (Shi et al. 2021): classification plus a self-supervised auxiliary task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.choices import Task
from purifiers.core.component import Classifier
from purifiers.core.memory_layout import as_taken_by
from purifiers.core.noise import generator
from purifiers.core.ranges import Fraction, NonNegative, Positive
from purifiers.core.self_supervision import NOISE, ROTATIONS, Views, head_of, rotated
from purifiers.training._base import Training


class Soap(Training):
    """CE + alpha L_aux, as `Mishne-Lab/SOAP` trains.

    The tasks are:

    - ``reconstruction``: noise .5 on the images; CE of their logits, L_aux to the clean pixels;
    - ``rotation``: noise .1, each image in four rotations; CE of the labels, L_aux of the
      rotations;
    - ``label_consistency``: two random views of each image; CE of both, L_aux the mean squared
      difference of their logits.

    Args:
        task: see above. Tasks other than label consistency need a classifier with a head for them.
        alpha: weight of the auxiliary loss; 1 upstream.
        epochs, batch_size, learning_rate, weight_decay, milestones: upstream's defaults; the rate
            would first drop at the end of the 100 epochs.

    Upstream draws one view for a whole batch, its noise is never negative, and its second view is
    always the same. Here each image has its own two random views.

    Raises:
        UserError: an unknown task or a negative alpha.
    """

    traits = Training.traits.replace(
        version=2,
        passes="6 * epochs",  # label consistency; 3 for reconstruction, 12 for rotation
    )

    def __init__(
        self,
        *,
        task: Task = "label_consistency",
        alpha: NonNegative = 1.0,
        epochs: Positive = 100,
        weight_decay: NonNegative = 1e-4,
        milestones: Sequence[Fraction] = (),
        **common: Any,
    ) -> None:
        super().__init__(epochs=epochs, weight_decay=weight_decay, milestones=milestones, **common)
        self.task, self.alpha = task, alpha

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        head = head_of(classifier, self.task, "soap")
        if head is None:
            views = (Views.drawn(images, seed, None, tag) for tag in ("first view", "second view"))
            logits = classifier(torch.cat([view(images) for view in views]))
            first_logits, second_logits = logits.chunk(2)
            auxiliary = functional.mse_loss(first_logits, second_logits)
        elif self.task == "reconstruction":
            logits, reconstruction = head.joint(as_taken_by(head, self._noisy(images, seed)))
            auxiliary = functional.mse_loss(reconstruction, images)
        else:
            turned = as_taken_by(head, self._noisy(rotated(images), seed))
            logits, rotation_logits = head.joint(turned)
            truth = torch.arange(ROTATIONS, device=images.device).repeat_interleave(len(images))
            auxiliary = functional.cross_entropy(rotation_logits, truth)
        repeated = labels.repeat(len(logits) // len(labels))
        return functional.cross_entropy(logits, repeated) + self.alpha * auxiliary

    def _noisy(self, images: Tensor, seed: int) -> Tensor:
        noise = torch.randn(images.shape, generator=generator(seed, "soap")).to(images.device)
        return (images + NOISE[self.task] * noise).clamp(0.0, 1.0)
