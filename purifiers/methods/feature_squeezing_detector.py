"""Detector of feature squeezing (Xu et al. 2018): how far squeezing moves the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.logits import queried
from purifiers.core.numbers import Length
from purifiers.core.ranges import Bits, Count, Interior, Odd, Share
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, Images, MethodTraits, Rule
from purifiers.methods._squeezers import check_strength, squeezers


class FeatureSqueezingDetector(Method):
    """Detect images whose prediction moves when they are squeezed; purify nothing.

    The distance is the L1 distance between the softmax outputs of the image and of a squeezed
    image; of several squeezers, each applied to the image itself, the largest counts (section V).
    Images above a threshold are detected.

    The threshold is a quantile of the distances of held-out training images; `mzweilin/EvadeML-Zoo`
    ("upstream") takes half of its clean test images. The fit is one step on the pinball loss, whose
    minimum is that quantile, followed by a validation, which sets the quantile exactly.

    Args:
        bits: of a pixel; null: not a squeezer. Upstream: 5 for CIFAR-10, 1 for MNIST.
        median: side of the median's window in pixels; 1: not a squeezer. Upstream: 2.
        nlm_search, nlm_patch: odd sides of the windows of non-local means; ``nlm_search`` null: not
            a squeezer. Upstream: 13, 3 for CIFAR-10, none for MNIST.
        nlm_strength: distance of patches, on the [0, 1] scale, beyond which their weight vanishes;
            above 0. Upstream: 2/255.
        false_positive_rate: fraction of the held-out images that is detected, in [0, 1). Upstream:
            .05.
        validation: fraction of the training images that is held out, in (0, 1); our choice.
        batch_size: images per pass; without effect on the threshold.

    Raises:
        UserError: no squeezer, a number out of range, or a window larger than the images.
    """

    traits = MethodTraits(
        version=1,
        provides=("detector_logit", "detected"),
        fit=Fit(passes="4 * validation"),  # the image and at most three squeezed ones
        images=Images(windows=("median", "nlm_search", "nlm_patch")),
        rules=(
            Rule(
                when={"bits": (None,), "median": (1,), "nlm_search": (None,)},
                text="it has no squeezer: set bits to 5",
            ),
        ),
    )

    def __init__(
        self,
        *,
        bits: Bits | None = 5,
        median: Count = 2,
        nlm_search: Odd | None = None,
        nlm_patch: Odd = 3,
        nlm_strength: Length = "2/255",
        false_positive_rate: Share = 0.05,
        validation: Interior = 0.1,
        batch_size: Count = 128,
    ) -> None:
        super().__init__()
        check_strength("feature_squeezing_detector: nlm_strength", nlm_strength)
        self.bits, self.median = bits, median
        self.nlm_search, self.nlm_patch = nlm_search, nlm_patch
        self.nlm_strength = nlm_strength
        self.false_positive_rate = false_positive_rate
        self.recipe = Recipe(
            epochs=1.0, steps=1, batch_size=batch_size, learning_rate=1.0, validation=validation
        )
        self._classifier: list[nn.Module] = []  # in a list, so that it is no submodule
        self._held_out: list[Tensor] = []  # distances of the held-out images in this validation

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        self._classifier = [] if classifier is None else [classifier]
        # softmax outputs are at most 2 apart: nothing is detected before the fit
        self.threshold = nn.Parameter(torch.tensor(2.0))

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Pinball loss of the threshold; in evaluation mode also set it from all held-out images.

        The threshold's final value is set by the last batch of a validation.
        """
        distances = self.distances(images).detach()
        if self.training:
            self._held_out.clear()
        else:
            self._held_out.append(distances)
            with torch.no_grad():
                self.threshold.copy_(quantile(torch.cat(self._held_out), self.false_positive_rate))
        above = distances - self.threshold
        rate = self.false_positive_rate
        return torch.maximum((1.0 - rate) * above, -rate * above).mean()

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The images, unchanged."""
        return images

    def squeezed(self, images: Tensor) -> list[Tensor]:
        """The images after each squeezer alone, each (n, C, H, W)."""
        owner = "feature_squeezing_detector"
        windows = (self.median, self.nlm_search, self.nlm_patch)
        each = squeezers(owner, self.bits, *windows, self.nlm_strength)
        return [squeeze(images) for squeeze in each]

    def distances(self, images: Tensor) -> Tensor:
        """Largest L1 distance between the predictions of each image and its squeezed ones, (n,).

        In [0, 2].

        Raises:
            UserError: the detector is bound to no classifier.
        """
        if not self._classifier:
            raise UserError("feature_squeezing_detector compares predictions: bind a classifier")
        (classifier,) = self._classifier

        def prediction(batch: Tensor) -> Tensor:
            return queried(classifier, batch).softmax(dim=1)

        original = prediction(images)
        moved = [(prediction(x) - original).abs().sum(dim=1) for x in self.squeezed(images)]
        return torch.stack(moved).amax(dim=0)

    def detector_logit(self, images: Tensor) -> Tensor:
        """Distance minus threshold, (n,): above 0 if detected."""
        return self.distances(images) - self.threshold

    def detected(self, images: Tensor) -> Tensor:
        """Whether the prediction moves further than the threshold, bool (n,)."""
        return self.detector_logit(images) > 0.0


def quantile(distances: Tensor, rate: float) -> Tensor:
    """The distance that at most a fraction ``rate`` of the ``distances`` (n,) exceeds, a scalar.

    Upstream's rank, ceil(n (1 - rate)).
    """
    count = len(distances)
    rank = min(count, max(1, math.ceil(count * (1.0 - rate) - 1e-9)))
    return distances.sort().values[rank - 1]
