"""A second training of a method, after the first has ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt
from torch import nn

from purifiers.core.loop import Loss
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import Pixels


@dataclass(frozen=True)
class Phase:
    """What a second training trains, and on what.

    Attributes:
        name: of its checkpoint and of its summary in the run's record.
        part: the module that is trained.
        loss: of a batch of ``inputs``, see :data:`purifiers.core.loop.Loss`.
        inputs: what it is trained on: embeddings, float32 (m, ...), or images.
        labels: int64 (m,).
        recipe: its training settings.
    """

    name: str
    part: nn.Module
    loss: Loss
    inputs: Pixels
    labels: npt.NDArray
    recipe: Recipe
