"""ME-Net's training (Yang et al. 2019): cross entropy of images with dropped, completed entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.choices import CompletionKind
from purifiers.core.component import Classifier
from purifiers.core.matrix_completion import (
    Completion,
    check_chances,
    drawn_mask,
    mask_chances,
)
from purifiers.core.noise import derive_seed, generator
from purifiers.core.ranges import Chance, Count, Fraction, NonNegative, Positive
from purifiers.core.training_images import augment
from purifiers.training._base import Training


class MeNet(Training):
    """Cross entropy of masked and completed copies of the images, as `YyzHarry/ME-Net` trains.

    Each image has ``masks`` fixed copies. Copy k keeps each entry with probability
    p_k = start + k (end - start) / masks, k = 1 ... masks, and is completed
    (:mod:`purifiers.core.matrix_completion`) before it is shifted and flipped. A step takes one
    copy of each image at random. Upstream stores all copies, rounded down to 8 bits, and visits
    each once per epoch; here they are computed when needed and not rounded.

    Args:
        completion, rank, nuclear_weight, iterations: as of the method ``me_net``.
        keep_start, keep_end: see above; .8 and 1 upstream.
        masks: copies of each image.
        epochs: passes over the training images: 200 epochs of ten copies upstream.
        batch_size, learning_rate, weight_decay, milestones: upstream's; the rate drops at epochs
            100 and 150. Upstream augments by ``crop_flip``.

    Raises:
        UserError: an unknown completion, or probabilities that fall or drop nothing.
    """

    traits = Training.traits.replace(
        version=1,
        passes="3 * epochs",
        budget=(
            "epochs",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
            "rank",
            "iterations",
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
        masks: Count = 10,
        epochs: Positive = 2000,
        batch_size: Count = 256,
        weight_decay: NonNegative = 1e-4,
        milestones: Sequence[Fraction] = (0.5, 0.75),
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            batch_size=batch_size,
            weight_decay=weight_decay,
            milestones=milestones,
            **common,
        )
        check_chances(keep_start, keep_end)
        self.complete = Completion(completion, rank, nuclear_weight, iterations)
        self.chances = mask_chances(keep_start, keep_end, masks)
        # the copies are augmented in the loss, after their completion
        self.augmentation, self.crop_padding = self.recipe.augmentation, self.recipe.crop_padding
        self.recipe = replace(self.recipe, augmentation="none")

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        copies = self.copies(images, indices, seed)
        if classifier.training:  # held-out images are not augmented
            copies = augment(
                copies, self.augmentation, derive_seed(seed, "me_net"), self.crop_padding
            )
        return functional.cross_entropy(classifier(copies), labels)

    def copies(self, images: Tensor, indices: Tensor, seed: int) -> Tensor:
        """A random one of each image's fixed copies, (n, C, H, W) in [0, 1]."""
        draw = generator(seed, "me_net copies")
        numbers = torch.randint(len(self.chances), (len(images),), generator=draw)
        chances = torch.tensor(self.chances)[numbers].view(-1, 1, 1, 1).to(images.device)
        # every copy of every image has its own index
        rows = indices.cpu() * len(self.chances) + numbers
        kept = drawn_mask(images, chances, derive_seed("me_net"), rows, "copies")
        with torch.no_grad():
            return self.complete(images, kept)
