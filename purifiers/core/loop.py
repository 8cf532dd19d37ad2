"""The training loop that every fitted component shares; it survives a kill."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.checkpoint import Checkpoint
from purifiers.core.errors import UserError, check_choice
from purifiers.core.noise import derive_seed, generator
from purifiers.core.progress import Progress

AUGMENTATIONS = ("none", "flip", "crop_flip")
SCHEDULES = ("step", "one_cycle", "plateau")
OPTIMIZERS = ("sgd", "adam")


class Pixels(Protocol):
    """Training images: an array, or something that reads the rows of one when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray: ...


Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(images, labels, indices, seed) of a batch to a scalar, the mean over its images.

For validation it is called in evaluation mode and under ``torch.no_grad``."""


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


def to_float(pixels: npt.NDArray, device: str = "cpu") -> Tensor:
    """uint8 NCHW pixels to float32 images in [0, 1]; float32 images pass unchanged."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.float().div_(255.0) if tensor.dtype == torch.uint8 else tensor


def augment(images: Tensor, augmentation: str, seed: int) -> Tensor:
    """Random shifts by up to 4 pixels (zero padding) and horizontal flips."""
    if augmentation == "none":
        return images
    draw = generator(seed, "augment")
    if augmentation == "crop_flip":
        count, _, height, width = images.shape
        padded = nn.functional.pad(images, (4, 4, 4, 4))
        rows = torch.randint(0, 9, (count, 1), generator=draw) + torch.arange(height)
        columns = torch.randint(0, 9, (count, 1), generator=draw) + torch.arange(width)
        which = torch.arange(count)
        images = padded.permute(0, 2, 3, 1)[
            which[:, None, None], rows[:, :, None], columns[:, None, :]
        ].permute(0, 3, 1, 2)
    flipped = torch.rand(len(images), generator=draw) < 0.5
    mask = flipped.to(images.device)[:, None, None, None]
    return torch.where(mask, images.flip(3), images).contiguous()


def fit(
    module: nn.Module,
    loss: Loss,
    pixels: Pixels,
    labels: npt.NDArray,
    recipe: Recipe,
    seed: int,
    checkpoint: Path,
    identity: str,
    label: str,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train ``module`` in place by minimising ``loss``; a rerun continues from ``checkpoint``.

    Order, augmentation and dropout depend on (seed, epoch or step) alone, so a continued training
    ends with the same bits as an undisturbed one on the same processor.

    Args:
        pixels: training images, uint8 (n, C, H, W), possibly memory-mapped.
        identity: the run this checkpoint belongs to; a checkpoint of another run is refused.

    Returns:
        ``steps`` taken, ``train_seconds`` by the wall clock (before a kill and after it), and
        ``final_loss``: mean over the last tenth of the steps, or, where the training may stop
        early, over its last epoch; in a game, of the first part's turns. With
        ``recipe.validation`` also ``validation_loss`` of the weights that were kept, and the
        ``best_epoch`` they are from.

    Raises:
        UserError: the checkpoint is damaged or belongs to another run; too few images to hold
            some of them out.
        RuntimeError: the loss is not finite.
    """
    train, held_out = _split(len(pixels), recipe.validation, seed)
    per_epoch = math.ceil(len(train) / recipe.batch_size)
    total = recipe.steps or max(1, round(per_epoch * recipe.epochs))
    reported = min(0.9 * total, total - max(1, sum(steps for _, steps in recipe.turns)))
    optimizer = recipe.optimizer_for(module)
    stored = Checkpoint(checkpoint, identity)
    state = stored.resume(module, optimizer)
    begun = time.monotonic() - state.seconds
    progress = Progress(label, total, unit="steps", done=state.step)
    saved = time.monotonic()

    def value_of(rows: Tensor, augmentation: str, noise: int) -> Tensor:
        images = augment(to_float(pixels[rows.numpy()], device), augmentation, noise)
        targets = torch.from_numpy(np.asarray(labels)[rows.numpy()]).to(device)
        torch.manual_seed(noise)
        return loss(images, targets, rows, noise)

    def finite(value: float, name: str) -> float:
        if not math.isfinite(value):
            raise RuntimeError(
                f"{label}: the {name} became {value} at step {state.step} of {total}"
            )
        return value

    def validation_loss() -> float:
        summed = 0.0
        with _evaluation(module):
            for number, rows in enumerate(held_out.split(recipe.batch_size)):
                noise = derive_seed(seed, "validation", number)
                summed += float(value_of(rows, "none", noise)) * len(rows)
        return finite(summed / len(held_out), "validation loss")

    order, epoch_of_order = torch.empty(0, dtype=torch.int64), -1
    while state.step < total and not recipe.stops(state.validation):
        epoch, place = divmod(state.step, per_epoch)
        if epoch != epoch_of_order:
            order = train[torch.randperm(len(train), generator=generator(seed, "order", epoch))]
            epoch_of_order = epoch
        rows = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].sort().values
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(state.step, total, state.validation)
        optimizer.zero_grad(set_to_none=True)
        part = recipe.turn(state.step)
        with _alone(module, part):
            value = value_of(rows, recipe.augmentation, derive_seed(seed, "step", state.step))
            value.backward()
        optimizer.step()
        state.step += 1
        current = finite(float(value.detach()), "loss")
        if recipe.early_stopping and place == 0:
            state.losses.clear()
        if (recipe.early_stopping or state.step > reported) and part == recipe.turn(0):
            state.losses.append(current)
        progress.add(1, f"loss {current:.4g}")
        if len(held_out) and (place == per_epoch - 1 or state.step == total):
            current = validation_loss()
            if current < min(state.validation, default=math.inf):
                state.best = {name: value.clone() for name, value in module.state_dict().items()}
            state.validation.append(current)
        if time.monotonic() - saved >= recipe.checkpoint_seconds and state.step < total:
            state.seconds = time.monotonic() - begun
            stored.save(state, module, optimizer)
            saved = time.monotonic()
    summary = {
        "steps": state.step,
        "final_loss": round(sum(state.losses) / len(state.losses), 6),
        "train_seconds": round(time.monotonic() - begun, 3),
    }
    if not state.validation:
        return summary
    module.load_state_dict(state.best)
    lowest = min(state.validation)
    best_epoch = state.validation.index(lowest) + 1
    return {**summary, "validation_loss": round(lowest, 6), "best_epoch": best_epoch}


def _split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out; drawn, for a folder of images is sorted by class."""
    if share == 0.0:
        return torch.arange(count), torch.empty(0, dtype=torch.int64)
    held_out = max(1, round(share * count))
    if held_out >= count:
        raise UserError(f"validation holds out {held_out} of {count} images: none is left")
    order = torch.randperm(count, generator=generator(seed, "validation"))
    return order[held_out:].sort().values, order[:held_out].sort().values


@contextlib.contextmanager
def _alone(module: nn.Module, part: str) -> Iterator[None]:
    """Only a part of the module takes gradients; afterwards every parameter that did does."""
    kept = {id(parameter) for parameter in module.get_submodule(part).parameters()}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
