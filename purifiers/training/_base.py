"""Base of every training recipe: its schedule, and what it measures after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy.typing as npt
from torch import Tensor

from purifiers.core.choices import Augmentation, Decayed, Optimizer, Precision, Schedule
from purifiers.core.component import Classifier, Component
from purifiers.core.coreset import Coreset
from purifiers.core.fitting import Workplace
from purifiers.core.loop import Order
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import Pixels
from purifiers.core.traits import TrainingTraits


class Training(Component):
    """A training recipe: optimizer, schedule, augmentation, and the loss of a batch.

    The defaults are those of `MadryLab/cifar10_challenge`: SGD .1 with momentum .9, weight decay
    2e-4, batch 128, the rate divided by 10 after 1/2 and 3/4 of 80,000 steps, which are 205 epochs
    of CIFAR-10.

    Args:
        epochs: passes over the training images.
        milestones: fractions of the training at which the rate drops (schedule ``step``).
        augmentation, crop_padding, decayed, precision: see :class:`purifiers.core.recipe.Recipe`.
        validation, patience, min_learning_rate, early_stopping: a held-out fraction of the images
            controls the rate (schedule ``plateau``) and the end of the training, see
            :class:`purifiers.core.recipe.Recipe`. Its loss is the training's own, in evaluation
            mode.
    """

    traits: ClassVar[TrainingTraits] = TrainingTraits(
        version=0,
        passes="0",
        budget=("epochs", "batch_size", "learning_rate", "optimizer", "schedule", "precision"),
        joined_later=("decayed", "crop_padding", "precision"),
    )

    def __init__(
        self,
        *,
        epochs: Positive = 205,
        batch_size: Count = 128,
        learning_rate: Positive = 0.1,
        optimizer: Optimizer = "sgd",
        momentum: Share = 0.9,
        weight_decay: NonNegative = 2e-4,
        decayed: Decayed = "all",
        schedule: Schedule = "step",
        milestones: Sequence[Fraction] = (0.5, 0.75),
        learning_rate_decay: Fraction = 0.1,
        augmentation: Augmentation = "none",
        crop_padding: Count = 4,
        validation: Share = 0.0,
        patience: Count = 4,
        min_learning_rate: NonNegative = 0.0,
        early_stopping: Whole = 0,
        precision: Precision = "float32",
    ) -> None:
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=weight_decay,
            decayed=decayed,
            schedule=schedule,
            milestones=tuple(milestones),
            learning_rate_decay=learning_rate_decay,
            augmentation=augmentation,
            crop_padding=crop_padding,
            validation=validation,
            patience=patience,
            min_learning_rate=min_learning_rate,
            early_stopping=early_stopping,
            precision=precision,
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

    def starts(self, epoch: int) -> None:
        """Called before the first step of each epoch, for losses that change over the training.

        After a kill it is called again before the training goes on.

        Args:
            epoch: number of the epoch, from 0.
        """

    def targets(
        self, classifier: Classifier, pixels: Pixels, labels: npt.NDArray, seed: int, at: Workplace
    ) -> tuple[npt.NDArray, dict[str, dict[str, Any]]]:
        """Labels to train on, such as pseudo-labels; by default those of the data set.

        Called at every start. Whatever takes long must be stored below ``at.folder``, in
        :data:`purifiers.core.fitting.PHASES`, which is removed after the training.

        Args:
            classifier: as initialised; it must not change.
            pixels: training images, uint8 or float32 (n, C, H, W).
            labels: of the data set, int64 (n,).
            seed: of the training.
            at: the run's folder and the resources of the job.

        Returns:
            The labels, int64 (n,), and the summaries of trainings that they come from, by name,
            each with its ``train_seconds``.
        """
        return labels, {}

    def order(self, count: int, seed: int) -> Order | None:
        """The rows of each epoch; None: all images in random order.

        Args:
            count: number of training images.
            seed: of the training.
        """
        return None

    def coreset(self, classifier: Classifier) -> Coreset | None:
        """What chooses the training images of each epoch; None: all of them.

        Args:
            classifier: the network in training.
        """
        return None

    def watch(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> dict[str, float]:
        """Measurements after each epoch, by name; empty: nothing is measured.

        Args:
            classifier: in evaluation mode.
            images, labels, indices: some training images, not augmented, as for :meth:`loss`.
            seed: the same in each epoch.
        """
        return {}

    def ends(self, watched: Sequence[dict[str, float]]) -> bool:
        """Whether the training ends after what :meth:`watch` measured in each epoch so far.

        The weights after the epoch before the last are then kept.
        """
        return False

    def note(self, watched: Sequence[dict[str, float]]) -> str:
        """A sentence for every table about what :meth:`watch` found; "" if there is nothing."""
        return ""
