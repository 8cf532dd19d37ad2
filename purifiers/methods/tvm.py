"""Total variation minimisation (Guo et al. 2018): drop random pixels and reconstruct the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.core.component import Method, default_indices
from purifiers.core.noise import uniform
from purifiers.core.ranges import Count, Positive, Share
from purifiers.core.traits import MethodTraits
from purifiers.methods._split_bregman import inpaint


class Tvm(Method):
    """Drop random pixels, then minimise total variation and the distance to the kept pixels.

    Section 4.2 of the paper. Each channel of a pixel is dropped on its own, as there. The total
    variation is the isotropic one of `facebookarchive/adversarial_image_defenses`, which also
    solves the problem by split Bregman iterations; the paper's formula has norms of whole rows and
    columns.
    Upstream keeps dropped pixels that are 0 already and ends at a change of .01. Here a dropped
    pixel is dropped, and every image takes all iterations.

    Attack it with ``gradient: bpda`` and ``eot`` (Athalye et al. 2018).

    Args:
        drop: probability that a value is dropped, in [0, 1). Guo et al. and upstream: .5.
        weight: of the total variation against half the squared distance. Guo et al.: .03.
        iterations: of the solver, at most 100 upstream. With 100 the mean distance to the minimum
            is about 1/2000 of the pixel range on photographs.
    """

    traits = MethodTraits(version=1, budget=("iterations",), random=True, differentiable=False)

    def __init__(
        self, *, drop: Share = 0.5, weight: Positive = 0.03, iterations: Count = 100
    ) -> None:
        super().__init__()
        self.drop, self.weight, self.iterations = drop, weight, iterations

    @torch.no_grad()
    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Reconstructed images; not differentiable."""
        rows = default_indices(images, indices)
        noise = uniform(seed, rows, images.shape[1:], tag="tvm").to(images.device)
        kept = (noise >= self.drop).to(images)
        return inpaint(images.contiguous(), kept, self.weight, self.iterations).clamp(0.0, 1.0)
