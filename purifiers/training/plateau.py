"""Natural training with a held-out set: plateaus halve the rate, the best epoch is kept."""

from __future__ import annotations

from typing import Any

from purifiers.core.choices import Optimizer, Schedule
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from purifiers.training._base import Training
from purifiers.training.natural import Natural


class Plateau(Natural):
    """Cross entropy on clean images with Adam, plateaus and early stopping.

    The recipe of the AdvAE paper (Li et al. 2019, section 4.1): rate 1e-3, halved when the
    validation loss has not improved for 4 epochs; stop after 10 such epochs; restore the best
    weights; hold out 10 % of the training data. Values that the paper omits are from
    `lihebi/AdvAE`: batch 128, at most 100 epochs, and no rate below 5e-5.

    It has its own budget, because values for :class:`Natural`'s SGD do not suit Adam.
    """

    traits = Training.traits.replace(
        version=1,
        passes="3 * epochs",
    )

    def __init__(
        self,
        *,
        epochs: Positive = 100,
        learning_rate: Positive = 0.001,
        optimizer: Optimizer = "adam",
        weight_decay: NonNegative = 0.0,
        schedule: Schedule = "plateau",
        learning_rate_decay: Fraction = 0.5,
        validation: Share = 0.1,
        patience: Count = 4,
        min_learning_rate: NonNegative = 5e-5,
        early_stopping: Whole = 10,
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            learning_rate=learning_rate,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            learning_rate_decay=learning_rate_decay,
            validation=validation,
            patience=patience,
            min_learning_rate=min_learning_rate,
            early_stopping=early_stopping,
            **common,
        )
