"""Copy this file to add a training recipe; its first line says what it does and who proposed it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.core.traits import TrainingTraits
from purifiers.training._base import Training


class Template(Training):
    """Cross entropy with label smoothing.

    Args:
        smoothing: weight taken from the true class (0 to 1); our choice.
    """

    traits = TrainingTraits(
        version=1,  # raise it whenever the same declaration would give other weights
        budget=("epochs",),  # the parameters a reduced scale may change
        passes="3 * epochs",  # cost per training image, in forward passes; a backward counts two
    )

    def __init__(self, *, smoothing: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.smoothing = smoothing

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        return functional.cross_entropy(classifier(images), labels, label_smoothing=self.smoothing)
