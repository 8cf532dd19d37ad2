"""Training under Gaussian noise (Cohen et al. 2019): base classifiers of randomised smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.core.noise import keys_on, normal_on
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive
from purifiers.training._base import Training


class GaussianAugmentation(Training):
    """Cross entropy on x + sigma z (Cohen et al., section 3.3); noisy images are not clipped.

    Each image has new noise in each epoch, from the step's seed and the image's index.

    Defaults are those of `locuslab/smoothing` for CIFAR-10 and ResNet-110 (``experiments.MD``,
    ``code/train.py``): 90 epochs of batches of 400, SGD .1 with momentum .9 and weight decay 1e-4,
    a tenth of the rate after 30 and 60 epochs. Its images are cropped and flipped
    (``augmentation: crop_flip``), and its networks standardise the noisy pixels.

    Args:
        sigma: standard deviation of the noise on the [0, 1] scale; .12, .25, .5 or 1 upstream.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(version=1, joined_later=(), passes="3 * epochs")

    def __init__(
        self,
        *,
        sigma: NonNegative = 0.25,
        epochs: Positive = 90,
        batch_size: Count = 400,
        weight_decay: NonNegative = 1e-4,
        milestones: Sequence[Fraction] = (0.3333333333333333, 0.6666666666666666),
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            batch_size=batch_size,
            weight_decay=weight_decay,
            milestones=milestones,
            **common,
        )
        self.sigma = sigma

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        keys = keys_on(seed, indices.to(images.device), "gaussian_augmentation")
        noise = normal_on(keys, images.shape[1:])
        return functional.cross_entropy(classifier(images + self.sigma * noise), labels)
