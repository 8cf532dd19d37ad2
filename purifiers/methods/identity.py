"""No purification: the control whose accuracy must equal the undefended accuracy exactly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Method
from purifiers.core.traits import MethodTraits


class Identity(Method):
    """Return the images unchanged."""

    traits = MethodTraits(version=1)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return images
