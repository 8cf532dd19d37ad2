"""Training settings: length, optimizer, learning rate, validation and early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from purifiers.core.choices import Augmentation, Decayed, Optimizer, Precision, Schedule
from purifiers.core.errors import UserError
from purifiers.core.parameters import alternatives, checked, is_restricted
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole

RISES = {"one_cycle": 0.3, "cyclic": 0.5}  # schedule to the share of steps in which rates rise


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
        optimizer: ``sgd``, ``nesterov`` (SGD with Nesterov's momentum) or ``adam``.
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
            `locuslab/fast_adversarial`. ``cosine``: half a period of the cosine, from
            ``learning_rate`` down to ``min_learning_rate``, in every step.
        augmentation: ``none``, ``flip``, or ``crop_flip`` (pad, crop, flip).
        crop_padding: pixels of zeros around an image before ``crop_flip`` crops it.
        validation: share of the images in [0, 1) that is held out, drawn with the seed. Their loss
            is computed after every epoch, in evaluation mode, without augmentation and with the
            same noise each time. The weights with the lowest loss are kept. 0: none is held out.
        patience: number of epochs without a lower validation loss after which the learning rate
            is multiplied by ``learning_rate_decay``, repeatedly (schedule ``plateau``).
        min_learning_rate: lower bound of the rate (schedules ``plateau`` and ``cosine``).
        early_stopping: epochs without a lower validation loss after which the training ends;
            0: never.
        warm_up_steps: steps in which the rate rises linearly from 0 to that of the schedule.
        gradient_clip: largest L2 norm of the gradient of all trained parameters; longer ones are
            scaled down to it. 0: no limit.
        averaging: decay d of the moving average of the trained parameters, which replaces them at
            the end of the training. After n steps the decay is min(d, (1 + n) / (10 + n)), as in
            `yang-song/score_sde_pytorch` and TensorFlow. 0: no average.
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
    optimizer: Optimizer = "sgd"
    momentum: Share = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decayed: Decayed = "all"
    schedule: Schedule = "step"
    warm_up: Share = 0.0
    clip_value: NonNegative = 0.0
    milestones: tuple[Fraction, ...] = ()
    learning_rate_decay: Fraction = 0.1
    augmentation: Augmentation = "none"
    crop_padding: Count = 4
    validation: Share = 0.0
    patience: Count = 4
    min_learning_rate: NonNegative = 0.0
    early_stopping: Whole = 0
    warm_up_steps: Whole = 0
    gradient_clip: NonNegative = 0.0
    averaging: Share = 0.0
    turns: tuple[tuple[str, int], ...] = ()
    precision: Precision = "float32"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if is_restricted(types := alternatives(str(field.type))):
                checked(types, getattr(self, field.name), field.name)
        if self.validation == 0.0 and (self.schedule == "plateau" or self.early_stopping):
            raise UserError("plateau and early_stopping need held-out images: set validation")
        if self.optimizer == "nesterov" and self.momentum == 0.0:
            raise UserError("nesterov needs a momentum above 0: set momentum, or optimizer to sgd")
        if self.turns and self.validation:
            raise UserError("turns: the losses of a game have no lowest; set validation to 0")
        if self.averaging and self.validation:
            raise UserError("averaging: the average is not validated; set validation to 0")

    def total_steps(self, images: int) -> int:
        """Optimizer steps of a training on so many images, at least 1."""
        batches = math.ceil(images / self.batch_size)
        return self.steps or max(1, round(batches * self.epochs))

    def rate(self, step: int, total: int, history: Sequence[float] = ()) -> float:
        """Learning rate at ``step`` of ``total``, after the validation losses in ``history``."""
        rise = min(step / self.warm_up_steps, 1.0) if self.warm_up_steps else 1.0
        return rise * self._scheduled_rate(step, total, history)

    def averaging_decay(self, steps: int) -> float:
        """Decay of the average of the parameters after ``steps`` steps, at least 1."""
        return min(self.averaging, (1 + steps) / (10 + steps))

    def _scheduled_rate(self, step: int, total: int, history: Sequence[float]) -> float:
        if self.schedule == "plateau":
            return self._plateau_rate(history)
        progress = step / max(total, 1)
        if self.schedule == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
            return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * share
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
            nesterov=self.optimizer == "nesterov",
        )
