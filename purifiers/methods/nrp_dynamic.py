"""NRP with dynamic inference (Naseer et al. 2020): noise on the image before its generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from purifiers.core.component import default_indices
from purifiers.core.noise import normal
from purifiers.core.ranges import NonNegative
from purifiers.core.traits import Fit
from purifiers.methods._nrp import RepresentationPurifier


class NrpDynamic(RepresentationPurifier):
    """x -> G(x + n), n normal and clipped to +-eps; image and result are clipped to [0, 1].

    Upstream's defence against an attacker with access to the generator, at the cost of clean
    accuracy. The training is that of :class:`purifiers.methods.nrp.Nrp`; noise is added at
    inference only.

    Args:
        noise: standard deviation of n on the [0, 1] scale (`Muzammal-Naseer/NRP`).
        common: see :class:`purifiers.methods._nrp.RepresentationPurifier`.

    Raises:
        UserError: negative noise.
    """

    traits = RepresentationPurifier.traits.replace(
        version=1,
        random=True,
        fit=Fit(passes="epochs * (3 * attack_steps + 2.5)", inference_only=("noise",)),
    )

    def __init__(self, *, noise: NonNegative = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.noise = noise

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        where = default_indices(images, indices)
        drawn = normal(seed, where, images.shape[1:], tag="nrp_dynamic").to(images.device)
        shift = (self.noise * drawn).clamp(-self.eps, self.eps)
        return super().purify((images + shift).clamp(0.0, 1.0), seed, where)
