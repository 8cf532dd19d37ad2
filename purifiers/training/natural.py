"""Natural training: cross entropy on clean images."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.training._base import Training


class Natural(Training):
    """Cross entropy on clean images; "natural training" in the AID-Purifier paper, section 4.

    The paper gives no recipe; the schedule is that of its adversarial trainings.
    """

    traits = Training.traits.replace(
        version=1,
        passes="3 * epochs",
    )

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        return functional.cross_entropy(classifier(images), labels)
