"""Base of every training recipe: the schedule, and attacks on a network in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from purifiers.core.component import Classifier, Component
from purifiers.core.errors import UserError
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.traits import TrainingTraits


class Training(Component):
    """A training recipe: optimizer, schedule, augmentation, and the loss of a batch.

    The defaults are those of `MadryLab/cifar10_challenge`: SGD .1 with momentum .9, weight decay
    2e-4, batch 128, the rate divided by 10 after 1/2 and 3/4 of 80,000 steps, which are 205 epochs
    of CIFAR-10.

    Args:
        epochs: passes over the training images.
        milestones: fractions of the training at which the rate drops (schedule ``step``).
        augmentation: ``none``, ``flip`` or ``crop_flip``.
        validation, patience, min_learning_rate, early_stopping: a held-out fraction of the images
            controls the rate (schedule ``plateau``) and the end of the training, see
            :class:`purifiers.core.recipe.Recipe`. Its loss is the training's own, in evaluation
            mode.
    """

    traits: ClassVar[TrainingTraits] = TrainingTraits(version=0, passes="0")

    def __init__(
        self,
        *,
        epochs: Positive = 205,
        batch_size: Count = 128,
        learning_rate: Positive = 0.1,
        optimizer: str = "sgd",
        momentum: Share = 0.9,
        weight_decay: NonNegative = 2e-4,
        schedule: str = "step",
        milestones: Sequence[Fraction] = (0.5, 0.75),
        learning_rate_decay: Fraction = 0.1,
        augmentation: str = "none",
        validation: Share = 0.0,
        patience: Count = 4,
        min_learning_rate: NonNegative = 0.0,
        early_stopping: Whole = 0,
    ) -> None:
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            milestones=tuple(milestones),
            learning_rate_decay=learning_rate_decay,
            augmentation=augmentation,
            validation=validation,
            patience=patience,
            min_learning_rate=min_learning_rate,
            early_stopping=early_stopping,
        )

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        """Scalar loss of a batch.

        Args:
            classifier: in training mode; for a held-out batch in evaluation mode and without
                gradients.
            images: float32 (n, C, H, W) in [0, 1], augmented.
            labels: int64 (n,).
            indices: the images' indices, int64 (n,); with ``seed`` they determine the noise.
        """
        raise TypeError(f"{type(self).__name__} does not implement loss")


@contextlib.contextmanager
def attack_mode(classifier: nn.Module, mode: str) -> Iterator[None]:
    """Set the mode for an attack on a network in training, and restore the network afterwards.

    Args:
        mode: ``eval``: batch normalisation uses its running statistics. ``train``: it uses those of
            the batch and does not update the running ones.

    Raises:
        UserError: any other mode.
    """
    if mode not in ("train", "eval"):
        raise UserError(f"attack_mode is {mode!r}: choose train or eval")
    norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [
        None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms
    ]
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.train(mode == "train")
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
