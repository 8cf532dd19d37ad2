"""Training settings: length, optimizer, learning rate, validation and early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from purifiers.core.errors import UserError, check_choice
from purifiers.core.parameters import alternatives, checked, is_ranged
from purifiers.core.precision import PRECISIONS
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole

AUGMENTATIONS = ("none", "flip", "crop_flip")
SCHEDULES = ("step", "one_cycle", "cyclic", "plateau")
RISES = {"one_cycle": 0.3, "cyclic": 0.5}  # schedule to the share of steps in which rates rise
OPTIMIZERS = ("sgd", "adam")
DECAYED = ("all", "kernels")


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        epochs: passes over the training images, possibly fractional; an upper bound with
            ``early_stopping``.
        batch_size: images per step.
        learning_rate: the initial rate, or the highest one (schedules ``one_cycle`` and
            ``cyclic``).
        steps: optimizer steps; overrides ``epochs`` unless 0.
        optimizer: ``sgd`` or ``adam``.
        momentum: of SGD.
        betas: of Adam.
        weight_decay: weight of the squared parameters in the loss, times 1/2.
        decayed: which parameters ``weight_decay`` includes: ``all``, or ``kernels``, which have at
            least 2 dimensions: no biases, no parameters of normalisation.
        warm_up: fraction of the training during which the rate rises linearly to ``learning_rate``
            (schedule ``step``).
        clip_value: largest absolute value of an entry of a parameter's gradient; larger ones are
            clipped. 0: none is.
        milestones: fractions of the training after which the learning rate is multiplied by
            ``learning_rate_decay`` (schedule ``step``).
        schedule: ``step``, ``plateau``, or ``one_cycle``: linear from 0 to ``learning_rate`` over
            the first 30 % and back to 0. ``cyclic``: the same with 50 %, as
            `locuslab/fast_adversarial`.
        augmentation: ``none``, ``flip``, or ``crop_flip`` (pad, crop, flip).
        crop_padding: pixels of zeros around an image before ``crop_flip`` crops it.
        validation: share of the images in [0, 1) that is held out, drawn with the seed. Their loss
            is computed after every epoch, in evaluation mode, without augmentation and with the
            same noise each time. The weights with the lowest loss are kept. 0: none is held out.
        patience: number of epochs without a lower validation loss after which the learning rate
            is multiplied by ``learning_rate_decay``, repeatedly (schedule ``plateau``).
        min_learning_rate: lower bound of the rate (schedule ``plateau``).
        early_stopping: epochs without a lower validation loss after which the training ends;
            0: never.
        turns: for games, such as a GAN: (name of a part of the module, steps), repeated in this
            order. Each step trains only its part. All other parameters do not require gradients
            then; they and their moments are unchanged. ``()``: every step trains all parts.
        precision: of convolutions and matrix products in the loss, see
            :func:`purifiers.core.precision.computing`; weights, their updates and the arithmetic on
            images are float32 in any case.
        checkpoint_seconds: seconds between checkpoints; a kill loses at most the work of one
            interval.

    Raises:
        UserError: an unknown choice, a share or count out of range, or settings that exclude each
            other.
    """

    epochs: NonNegative
    batch_size: Count
    learning_rate: Positive
    steps: Whole = 0
    optimizer: str = "sgd"
    momentum: Share = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decayed: str = "all"
    schedule: str = "step"
    warm_up: Share = 0.0
    clip_value: NonNegative = 0.0
    milestones: tuple[Fraction, ...] = ()
    learning_rate_decay: Fraction = 0.1
    augmentation: str = "none"
    crop_padding: Count = 4
    validation: Share = 0.0
    patience: Count = 4
    min_learning_rate: NonNegative = 0.0
    early_stopping: Whole = 0
    turns: tuple[tuple[str, int], ...] = ()
    precision: str = "float32"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("decayed", self.decayed, DECAYED)
        check_choice("precision", self.precision, PRECISIONS)
        for field in fields(self):
            if is_ranged(types := alternatives(str(field.type))):
                checked(types, getattr(self, field.name), field.name)
        if self.validation == 0.0 and (self.schedule == "plateau" or self.early_stopping):
            raise UserError("plateau and early_stopping need held-out images: set validation")
        if self.turns and self.validation:
            raise UserError("turns: the losses of a game have no lowest; set validation to 0")

    def rate(self, step: int, total: int, history: Sequence[float] = ()) -> float:
        """Learning rate at ``step`` of ``total``, after the validation losses in ``history``."""
        if self.schedule == "plateau":
            return self._plateau_rate(history)
        progress = step / max(total, 1)
        if self.schedule in RISES:
            rise = RISES[self.schedule]
            share = progress / rise if progress < rise else (1.0 - progress) / (1.0 - rise)
            return self.learning_rate * max(share, 1.0 / max(total, 1))
        if progress < self.warm_up:
            return self.learning_rate * min(1.0, (step + 1) / (self.warm_up * total))
        passed = sum(progress >= milestone for milestone in self.milestones)
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
        """Whether to stop early after the validation losses in ``history``."""
        if not self.early_stopping or not history:
            return False
        return len(history) - 1 - int(np.argmin(history)) >= self.early_stopping

    def turn(self, step: int) -> str:
        """Name of the part of the module that is trained at ``step``; "" for the whole module."""
        cycle = [part for part, steps in self.turns for _ in range(steps)]
        return cycle[step % len(cycle)] if cycle else ""

    def optimizer_for(self, module: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer of the trainable parameters of ``module``."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in trainable if p.dim() > 1 or self.decayed == "all"]
        parameters: list[dict[str, Any]] = [{"params": decayed}]
        if self.decayed == "kernels":
            others = [p for p in trainable if p.dim() <= 1]
            parameters.append({"params": others, "weight_decay": 0.0})
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
