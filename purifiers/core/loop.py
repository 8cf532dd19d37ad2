"""Resumable training loop shared by all fitted components."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.checkpoint import Checkpoint
from purifiers.core.coreset import Coreset
from purifiers.core.errors import UserError
from purifiers.core.modes import evaluation
from purifiers.core.noise import derive_seed, generator
from purifiers.core.precision import computing
from purifiers.core.progress import Progress
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import Pixels, TrainingImages, augment

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(images, labels, indices, seed) of a batch to a scalar: the mean loss of its images.

Validation calls it in evaluation mode and under ``torch.no_grad``."""

Order = Callable[[Tensor, int], Tensor]
"""(rows to train on, number of the epoch) to the rows of that epoch, int64, as many or more.

Batches are consecutive rows; a row may occur several times. With more rows than
needed the last batch is full."""

READ_EVERY = 50
"""Steps between two reads of the loss on a GPU, each of which waits for it; our choice."""


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
    prepare: Callable[[], None] | None = None,
    quiet: bool = False,
    watch: Callable[[], dict[str, float]] | None = None,
    ends: Callable[[Sequence[dict[str, float]]], bool] | None = None,
    order: Order | None = None,
    starts: Callable[[int], None] | None = None,
    coreset: Coreset | None = None,
) -> dict[str, Any]:
    """Train ``module`` in place by minimising ``loss``; a rerun continues from ``checkpoint``.

    Batch order, augmentation and dropout depend only on the seed and the epoch or step. A resumed
    training therefore ends with the same bits as an uninterrupted one on the same processor. On a
    GPU the order of summation varies, and so may the bits.

    Args:
        module: the module to train.
        loss: of a batch.
        pixels: training images, uint8 or float32 (n, C, H, W), possibly memory-mapped.
        labels: int64 (n,).
        recipe: length, optimizer and learning rate of the training.
        seed: random seed.
        checkpoint: path of the checkpoint.
        identity: id of the run; a checkpoint of another run is refused.
        label: begins the progress lines and error messages.
        prepare: called at every start; must store its own results. Its time counts as training
            time, except that of a call which a kill interrupted.
        quiet: print no progress.
        watch: measures the module after each epoch; called in evaluation mode.
        ends: whether the training ends, from the results of ``watch`` so far. The weights after the
            epoch before are then kept; with ``recipe.validation`` those with the lowest loss.
        order: the rows of each epoch; None: all in random order.
        starts: called with the number of the epoch, from 0, before its first step; after a kill
            also before the step with which the training goes on.
        coreset: chooses the rows of each epoch, fewer than all; an epoch is one pass over them.

    Returns:
        Summary with ``steps`` taken, ``train_seconds`` (wall clock, before and after a kill) and
        ``final_loss``. The final loss is the mean over the last tenth of the steps; with early
        stopping, over the last epoch; in a game, over the turns of the first part only. With
        ``recipe.validation`` also ``validation_loss`` and ``best_epoch`` of the kept weights; with
        ``watch`` also ``watched``, its results after each epoch that are not empty.

    Raises:
        UserError: the checkpoint is damaged or belongs to another run, or holding images out
            leaves none to train on.
        RuntimeError: the loss is not finite.
    """
    train, held_out = _split(len(pixels), recipe.validation, seed)
    count = len(train) if coreset is None else coreset.size(len(train))
    per_epoch = math.ceil(count / recipe.batch_size)
    total = recipe.total_steps(count)
    unreported = min(0.9 * total, total - max(1, sum(steps for _, steps in recipe.turns)))
    optimizer = recipe.optimizer_for(module)
    store = Checkpoint(checkpoint, identity)
    state = store.resume(module, optimizer)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if recipe.averaging:
        state.averaged = {
            name: state.averaged.get(name, p.detach()).to(p.device, copy=True)
            for name, p in trained.items()
        }
    started = time.monotonic() - state.seconds
    if prepare is not None:
        prepare()
        if not state.step:  # a kill must not lose the time that this took
            state.seconds = time.monotonic() - started
            store.save(state, module, optimizer)
    may_stop_early = bool(recipe.early_stopping)
    progress = Progress(
        label, total, unit="steps", done=state.step, at_most=may_stop_early, quiet=quiet
    )
    last_save = time.monotonic()
    data = TrainingImages(pixels, labels, device)
    losses = _Losses(1 if torch.device(device).type == "cpu" else READ_EVERY)

    def batch_loss(rows: Tensor, augmentation: str, noise: int) -> Tensor:
        images, targets = data.batch(rows)
        images = augment(images, augmentation, noise, recipe.crop_padding)
        torch.manual_seed(noise)
        with computing(recipe.precision, device):
            return loss(images, targets, rows, noise)

    def finite(value: float, name: str, step: int) -> float:
        if not math.isfinite(value):
            raise RuntimeError(f"{label}: the {name} became {value} at step {step} of {total}")
        return value

    def validation_loss() -> float:
        total_loss = 0.0
        with evaluation(module):
            for number, rows in enumerate(held_out.split(recipe.batch_size)):
                noise = derive_seed(seed, "validation", number)
                total_loss += float(batch_loss(rows, "none", noise)) * len(rows)
        return finite(total_loss / len(held_out), "validation loss", state.step)

    def shuffled(rows: Tensor, epoch: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator(seed, "order", epoch))]

    def rows_of(epoch: int) -> Tensor:
        if coreset is None:
            return train
        if coreset.due(epoch) and state.chosen_before != epoch:
            state.rows, state.weights = coreset.choose(data, train, epoch, seed)
            state.chosen_before = epoch
            state.seconds = time.monotonic() - started
            store.save(state, module, optimizer)
        coreset.use(state.rows, state.weights)
        return state.rows

    in_order, epoch_of_order = torch.empty(0, dtype=torch.int64), -1
    while state.step < total and not recipe.stops(state.validation):
        epoch, batch_number = divmod(state.step, per_epoch)
        if epoch != epoch_of_order:
            in_order = (order or shuffled)(rows_of(epoch), epoch)
            epoch_of_order = epoch
            if starts is not None:
                starts(epoch)
        rows = (
            in_order[batch_number * recipe.batch_size : (batch_number + 1) * recipe.batch_size]
            .sort()
            .values
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(state.step, total, state.validation)
        optimizer.zero_grad(set_to_none=True)
        part = recipe.turn(state.step)
        with _training_only(module, part):
            value = batch_loss(rows, recipe.augmentation, derive_seed(seed, "step", state.step))
            value.backward()
        if recipe.gradient_clip:
            nn.utils.clip_grad_norm_(trained.values(), recipe.gradient_clip)
        if recipe.clip_value:
            nn.utils.clip_grad_value_(module.parameters(), recipe.clip_value)
        optimizer.step()
        state.step += 1
        if recipe.averaging:
            _average(state.averaged, trained, recipe.averaging_decay(state.step))
        end_of_epoch = batch_number == per_epoch - 1 or state.step == total
        save = time.monotonic() - last_save >= recipe.checkpoint_seconds and state.step < total
        for step, current in losses.add(state.step, value.detach(), read=end_of_epoch or save):
            finite(current, "loss", step)
            if may_stop_early and (step - 1) % per_epoch == 0:
                state.losses.clear()
            reported = may_stop_early or step > unreported
            if reported and recipe.turn(step - 1) == recipe.turn(0):
                state.losses.append(current)
        progress.add(1, f"loss {losses.last:.4g}")
        if watch is not None and end_of_epoch:
            with evaluation(module):
                measured = watch()
            state.watched += [measured] if measured else []
            if measured and ends is not None:
                if ends(state.watched):
                    state.losses = state.losses or [losses.last]
                    break
                if not len(held_out):
                    state.best = _copy(module)
        if len(held_out) and end_of_epoch:
            current = validation_loss()
            if current < min(state.validation, default=math.inf):
                state.best = _copy(module)
            state.validation.append(current)
        if save:
            state.seconds = time.monotonic() - started
            store.save(state, module, optimizer)
            last_save = time.monotonic()
    summary: dict[str, Any] = {
        "steps": state.step,
        "final_loss": round(sum(state.losses) / len(state.losses), 6),
        "train_seconds": round(time.monotonic() - started, 3),
    }
    if state.watched:
        summary["watched"] = state.watched
    if ends is not None and ends(state.watched) and not state.validation:
        module.load_state_dict(state.best)
    if recipe.averaging:
        module.load_state_dict(state.averaged, strict=False)  # without the buffers
    if not state.validation:
        return summary
    module.load_state_dict(state.best)
    lowest = min(state.validation)
    best_epoch = state.validation.index(lowest) + 1
    return {**summary, "validation_loss": round(lowest, 6), "best_epoch": best_epoch}


class _Losses:
    """Losses of training steps, read from the device once in a while.

    Attributes:
        last: the last loss read.
    """

    def __init__(self, every: int) -> None:
        self.last = math.nan
        self._every = every
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, step: int, value: Tensor, read: bool) -> list[tuple[int, float]]:
        """Add the loss of a step; the steps and losses read, if it is time or ``read``."""
        self._unread.append((step, value))
        if not read and len(self._unread) < self._every:
            return []
        steps = [step for step, _ in self._unread]
        values = torch.stack([value for _, value in self._unread]).tolist()
        self._unread, self.last = [], values[-1]
        return list(zip(steps, values, strict=True))


def _average(averaged: dict[str, Tensor], trained: dict[str, nn.Parameter], decay: float) -> None:
    """Move the averages by 1 - ``decay`` of the way to the parameters, in place."""
    current = [parameter.detach() for parameter in trained.values()]
    torch._foreach_lerp_(list(averaged.values()), current, 1.0 - decay)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, both sorted; drawn at random, as files may be sorted."""
    if share == 0.0:
        return torch.arange(count), torch.empty(0, dtype=torch.int64)
    held_out = max(1, round(share * count))
    if held_out >= count:
        raise UserError(
            f"validation holds out {held_out} of {count} images: lower it, none is left to train on"
        )
    order = torch.randperm(count, generator=generator(seed, "validation"))
    return order[held_out:].sort().values, order[:held_out].sort().values


@contextlib.contextmanager
def _training_only(module: nn.Module, part: str) -> Iterator[None]:
    """Disable gradients outside one part of the module; enable them again afterwards."""
    kept = {id(parameter) for parameter in module.get_submodule(part).parameters()}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
