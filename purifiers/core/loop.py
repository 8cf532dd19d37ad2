"""The training loop that every fitted component shares; it survives a kill."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.artifacts import read_sealed, write_sealed
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed, generator
from purifiers.core.progress import Progress

AUGMENTATIONS = ("none", "flip", "crop_flip")
SCHEDULES = ("step", "one_cycle")
OPTIMIZERS = ("sgd", "adam")


class Pixels(Protocol):
    """Training images: an array, or something that reads the rows of one when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray: ...


Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(images, labels, indices, seed) of a batch to a scalar."""


@dataclass(frozen=True)
class Recipe:
    """How to minimise a loss.

    Attributes:
        epochs: passes over the training images; need not be whole.
        milestones: fractions of the training after which the learning rate is multiplied by
            ``learning_rate_decay`` (schedule ``step``).
        schedule: ``step``, or ``one_cycle``: linear from 0 to ``learning_rate`` over the first
            30 % and back to 0.
        augmentation: ``none``, ``flip``, or ``crop_flip`` (pad by 4, crop, flip).
        checkpoint_seconds: at most this much work is repeated after a kill.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "step"
    milestones: tuple[float, ...] = ()
    learning_rate_decay: float = 0.1
    augmentation: str = "none"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if value not in known:
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(known)}")

    def rate(self, step: int, total: int) -> float:
        """Learning rate at ``step`` of ``total``."""
        done = step / max(total, 1)
        if self.schedule == "one_cycle":
            rising = done / 0.3 if done < 0.3 else (1.0 - done) / 0.7
            return self.learning_rate * max(rising, 1.0 / max(total, 1))
        passed = sum(done >= milestone for milestone in self.milestones)
        return self.learning_rate * self.learning_rate_decay**passed

    def optimizer_for(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters of ``module``."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay
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
        ``steps`` and ``final_loss`` (mean over the last tenth of the steps).

    Raises:
        UserError: the checkpoint is damaged or belongs to another run.
        RuntimeError: the loss is not finite.
    """
    count = len(pixels)
    per_epoch = math.ceil(count / recipe.batch_size)
    total = max(1, round(per_epoch * recipe.epochs))
    optimizer = recipe.optimizer_for(module)
    step, tail = _resume(checkpoint, identity, module, optimizer)
    progress = Progress(label, total, unit="steps", done=step)
    saved = time.monotonic()
    order, epoch_of_order = torch.empty(0, dtype=torch.int64), -1
    while step < total:
        epoch, place = divmod(step, per_epoch)
        if epoch != epoch_of_order:
            order = torch.randperm(count, generator=generator(seed, "order", epoch))
            epoch_of_order = epoch
        chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].sort().values
        step_seed = derive_seed(seed, "step", step)
        images = augment(to_float(pixels[chosen.numpy()], device), recipe.augmentation, step_seed)
        targets = torch.from_numpy(np.asarray(labels)[chosen.numpy()]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, total)
        torch.manual_seed(step_seed)
        optimizer.zero_grad(set_to_none=True)
        value = loss(images, targets, chosen, step_seed)
        value.backward()
        optimizer.step()
        step += 1
        current = float(value.detach())
        if not math.isfinite(current):
            raise RuntimeError(f"{label}: the loss became {current} at step {step} of {total}")
        if step > 0.9 * total or step == total:
            tail.append(current)
        progress.add(1, f"loss {current:.4g}")
        if time.monotonic() - saved >= recipe.checkpoint_seconds and step < total:
            _save(checkpoint, identity, step, tail, module, optimizer)
            saved = time.monotonic()
    return {"steps": total, "final_loss": round(sum(tail) / len(tail), 6)}


def _save(
    path: Path,
    identity: str,
    step: int,
    tail: list[float],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {
            "identity": identity,
            "step": step,
            "tail": tail,
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        buffer,
    )
    write_sealed(path, buffer.getvalue())


def _resume(
    path: Path, identity: str, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    found = torch.load(io.BytesIO(read_sealed(path)), weights_only=True, map_location="cpu")
    if found["identity"] != identity:
        raise UserError(
            f"{path}: belongs to run {found['identity']!r}, not {identity!r}; "
            "remove it to train from the start"
        )
    module.load_state_dict(found["module"])
    optimizer.load_state_dict(found["optimizer"])
    return found["step"], list(found["tail"])
