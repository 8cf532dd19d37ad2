"""Template of a training recipe; replace this line by: what it does, authors, year.

Copy this file to ``<name>.py`` and rename the class to the CamelCase of ``<name>``. No list has to
be edited. The first line of the module docstring is the recipe's summary (15 to 120 characters).

The contract tests require of every recipe:

- a finite scalar loss with gradients for every parameter of the classifier;
- the same loss for the same seed, and a lower loss after a few steps;
- a classifier that is still in training mode, with unchanged running statistics of batch
  normalisation after an inner attack.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.core.ranges import Fraction
from purifiers.training._base import Training


class Template(Training):
    """Cross entropy with label smoothing (name the section or equation here).

    Args:
        smoothing: probability taken from the true class, in [0, 1]; our choice (name the source of
            each default).
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(
        version=1,  # raise it whenever the weights change; stored results are then recomputed
        budget=("epochs",),  # parameters that a reduced scale may change: sizes and budgets only
        passes="3 * epochs",  # cost per training image in forward passes; a backward counts two
    )

    def __init__(self, *, smoothing: Fraction = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.smoothing = smoothing

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        return functional.cross_entropy(classifier(images), labels, label_smoothing=self.smoothing)
