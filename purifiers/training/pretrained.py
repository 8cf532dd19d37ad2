"""No training: the weights that a classifier brings, such as those of a published checkpoint."""

from __future__ import annotations

from purifiers.core.traits import TrainingTraits
from purifiers.training._base import Training


class Pretrained(Training):
    """Keep the weights that the classifier brings.

    Planning refuses it for a classifier whose traits do not declare ``pretrained``. Any other
    training of such a classifier starts from the weights that it brings.
    """

    traits = TrainingTraits(version=1, passes="0", keeps_weights=True)

    def __init__(self) -> None:
        """No parameters and no schedule."""
