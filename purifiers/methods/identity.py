"""No purification: the control whose accuracy must equal the undefended one exactly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Method

VERSION = 1
PASSES = "0"


class Identity(Method):
    """Gives the images back unchanged."""

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return images
