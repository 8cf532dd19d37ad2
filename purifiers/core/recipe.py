"""How to train: length, optimizer, learning rate, held-out images, when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from purifiers.core.errors import UserError, check_choice

AUGMENTATIONS = ("none", "flip", "crop_flip")
SCHEDULES = ("step", "one_cycle", "plateau")
OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Recipe:
    """How to minimise a loss.

    Attributes:
        epochs: passes over the training images; need not be whole. At most, with
            ``early_stopping``.
        steps: as many are taken, whatever ``epochs`` says; 0: those of the epochs.
        betas: Adam's.
        milestones: fractions of the training after which the learning rate is multiplied by
            ``learning_rate_decay`` (schedule ``step``).
        schedule: ``step``, ``plateau``, or ``one_cycle``: linear from 0 to ``learning_rate`` over
            the first 30 % and back to 0.
        augmentation: ``none``, ``flip``, or ``crop_flip`` (pad by 4, crop, flip).
        validation: share of the images that is held out, drawn with the seed. Their loss is taken
            after every epoch, in evaluation mode, without augmentation and with the same noise
            each time; the weights with the lowest one are kept. 0: all are trained on.
        patience: epochs without a lower validation loss after which the learning rate is
            multiplied by ``learning_rate_decay``, again and again (schedule ``plateau``).
        min_learning_rate: no plateau lowers the rate below this.
        early_stopping: epochs without a lower validation loss after which the training ends;
            0: never.
        turns: for games, such as a GAN's: (name of a part of the module, steps), in turn and again
            and again. In those steps that part alone is trained; the loss finds all other
            parameters without ``requires_grad``, and the optimizer leaves them and their moments
            as they are. ``()``: everything is trained in every step.
        checkpoint_seconds: at most this much work is repeated after a kill.

    Raises:
        UserError: an unknown choice, or a share or count that makes no sense.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    steps: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "step"
    milestones: tuple[float, ...] = ()
    learning_rate_decay: float = 0.1
    augmentation: str = "none"
    validation: float = 0.0
    patience: int = 4
    min_learning_rate: float = 0.0
    early_stopping: int = 0
    turns: tuple[tuple[str, int], ...] = ()
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if not 0.0 <= self.validation < 1.0:
            raise UserError(f"validation is {self.validation}: a share of the images, below 1")
        if self.patience < 1:
            raise UserError(f"patience is {self.patience}: at least 1 epoch")
        if self.validation == 0.0 and (self.schedule == "plateau" or self.early_stopping):
            raise UserError("plateau and early_stopping need held-out images: set validation")
        if self.turns and self.validation:
            raise UserError("turns: the losses of a game have no lowest; set validation to 0")

    def rate(self, step: int, total: int, history: Sequence[float] = ()) -> float:
        """Learning rate at ``step`` of ``total``, given the validation losses so far."""
        if self.schedule == "plateau":
            return self._plateau_rate(history)
        done = step / max(total, 1)
        if self.schedule == "one_cycle":
            rising = done / 0.3 if done < 0.3 else (1.0 - done) / 0.7
            return self.learning_rate * max(rising, 1.0 / max(total, 1))
        passed = sum(done >= milestone for milestone in self.milestones)
        return self.learning_rate * self.learning_rate_decay**passed

    def _plateau_rate(self, history: Sequence[float]) -> float:
        rate, best, waited = self.learning_rate, math.inf, 0
        for value in history:
            waited = 0 if value < best else waited + 1
            best = min(best, value)
            if waited == self.patience:
                rate, waited = max(rate * self.learning_rate_decay, self.min_learning_rate), 0
        return min(rate, self.learning_rate)

    def stops(self, history: Sequence[float]) -> bool:
        """Whether the validation losses so far end the training."""
        if not self.early_stopping or not history:
            return False
        return len(history) - 1 - int(np.argmin(history)) >= self.early_stopping

    def turn(self, step: int) -> str:
        """Name of the part of the module that is trained at ``step``; "" is all of it."""
        cycle = [part for part, steps in self.turns for _ in range(steps)]
        return cycle[step % len(cycle)] if cycle else ""

    def optimizer_for(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters of ``module``."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(
                parameters,
                lr=self.learning_rate,
                betas=self.betas,
                weight_decay=self.weight_decay,
            )
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
