"""ME-Net (Yang et al. 2019): drop random entries and complete the image as a low-rank matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.choices import CompletionKind
from purifiers.core.component import Method, default_indices
from purifiers.core.matrix_completion import Completion, check_chances, drawn_mask
from purifiers.core.ranges import Chance, Count, Positive
from purifiers.core.traits import Images, MethodTraits, TrainedWith


class MeNet(Method):
    """Keep each entry of the H x C W matrix with probability p, then complete the matrix.

    See :mod:`purifiers.core.matrix_completion`. The classifier is trained on such images by the
    training ``me_net``, with p from ``keep_start`` to ``keep_end``; here p is their middle.

    Constants are from `YyzHarry/ME-Net`. Its scripts for training and for attacks differ: .8 to 1,
    and a p of .5, which is the middle of .4 to .6.

    ``purify`` has its exact gradient, except for the choice of what is kept: finite wherever
    singular values are equal, but large where the last kept and the first dropped one are close.
    Upstream attacks it with ``gradient: bpda`` and a fresh mask at each step (``eot: 1``).

    Args:
        completion: ``usvt`` or ``nuclear_norm``.
        rank: singular values that ``usvt`` keeps; 25 of the 32 of CIFAR (80 %).
        keep_start, keep_end: see above.
        nuclear_weight: mu, of the nuclear norm.
        iterations: of Soft-Impute for the nuclear norm; our choice. With 100 and p of .9 the
            result on uniform noise of 32x32 is within 7e-4 of that with 400.

    Raises:
        UserError: an unknown completion, or probabilities that fall or drop nothing.
    """

    traits = MethodTraits(
        version=1,
        budget=("rank", "iterations"),
        random=True,
        images=Images(windows=("rank",)),
        trained_with=TrainedWith(
            training="me_net",
            same=("completion", "rank", "keep_start", "keep_end", "nuclear_weight", "iterations"),
        ),
    )

    def __init__(
        self,
        *,
        completion: CompletionKind = "usvt",
        rank: Count = 25,
        keep_start: Chance = 0.8,
        keep_end: Chance = 1.0,
        nuclear_weight: Positive = 1.0,
        iterations: Count = 100,
    ) -> None:
        super().__init__()
        check_chances(keep_start, keep_end)
        self.chance = (keep_start + keep_end) / 2.0
        self.rank = rank
        self.complete = Completion(completion, rank, nuclear_weight, iterations)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Completed images, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: the images have fewer rows than ``rank``.
        """
        rows = default_indices(images, indices)
        kept = drawn_mask(images, self.chance, seed, rows, "me_net")
        return self.complete(images, kept)
