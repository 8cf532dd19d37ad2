"""Random signs: the control that moves every pixel as far as a sign-step purifier may."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Method, default_indices
from purifiers.core.noise import signs
from purifiers.core.numbers import Length
from purifiers.core.traits import MethodTraits


class RandomSign(Method):
    """x + eps s, s in {-1, +1} per pixel, clipped to [0, 1]; our own control.

    Args:
        eps: L-infinity radius, a fraction of the pixel range; use that of the compared purifier.
    """

    traits = MethodTraits(version=1, random=True)

    def __init__(self, *, eps: Length = "8/255") -> None:
        super().__init__()
        self.eps = eps

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        where = default_indices(images, indices)
        noise = signs(seed, where, images.shape[1:], tag="random_sign").to(images.device)
        return (images + self.eps * noise).clamp(0.0, 1.0)
