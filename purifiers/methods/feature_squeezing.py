"""Feature squeezing (Xu et al. 2018): fewer bits per pixel, a median and non-local means."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Method
from purifiers.core.numbers import Length
from purifiers.core.ranges import Bits, Count, Odd
from purifiers.core.traits import Images, MethodTraits
from purifiers.methods._squeezers import check_strength, squeezers


class FeatureSqueezing(Method):
    """Squeeze images, one squeezer after the other.

    Xu et al. classify original and squeezed images and compare the predictions, which is
    ``feature_squeezing_detector``; this method classifies squeezed images only. One squeezer after
    the other, in this order, is our choice.

    The gradient is the median's own; it passes the other squeezers unchanged (straight-through).

    Args:
        bits: of a pixel; null: not reduced. `mzweilin/EvadeML-Zoo` has 5 for CIFAR-10 and 1 for
            MNIST.
        median: side of the median's window in pixels, at most that of the images; 1: no median. 2
            is the setting of `mzweilin/EvadeML-Zoo` for both.
        nlm_search: side of the search window of non-local means, odd; null: no non-local means,
            as here for the default. `mzweilin/EvadeML-Zoo` has 13, 3 and 4/255 for CIFAR-10.
        nlm_patch: side of its patches, odd.
        nlm_strength: distance of patches, on the [0, 1] scale, beyond which their weight vanishes;
            above 0.

    Raises:
        UserError: a number out of range, or a window larger than the images.
    """

    traits = MethodTraits(
        version=1,
        images=Images(windows=("median", "nlm_search", "nlm_patch")),
    )

    def __init__(
        self,
        *,
        bits: Bits | None = 5,
        median: Count = 2,
        nlm_search: Odd | None = None,
        nlm_patch: Odd = 3,
        nlm_strength: Length = "4/255",
    ) -> None:
        super().__init__()
        check_strength("feature_squeezing: nlm_strength", nlm_strength)
        self.bits, self.median = bits, median
        self.nlm_search, self.nlm_patch = nlm_search, nlm_patch
        self.nlm_strength = nlm_strength

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Squeezed images; the same for every seed."""
        windows = (self.median, self.nlm_search, self.nlm_patch)
        for squeeze in squeezers("feature_squeezing", self.bits, *windows, self.nlm_strength):
            images = squeeze(images)
        return images
