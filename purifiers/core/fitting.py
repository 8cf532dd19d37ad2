"""Fit a method on frozen classifiers: the steps that a stage and :func:`purifiers.fit` share."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core import loop
from purifiers.core.component import Method, frozen
from purifiers.core.coreset import Coreset
from purifiers.core.errors import UserError
from purifiers.core.images import check_images, check_labels
from purifiers.core.memory_layout import runs_channels_last
from purifiers.core.modes import frozen_meanwhile
from purifiers.core.noise import derive_seed
from purifiers.core.phase import Phase
from purifiers.core.precision import rounding
from purifiers.core.recipe import Recipe
from purifiers.core.shards import fill
from purifiers.core.taps import device_of
from purifiers.core.training_images import Pixels, to_float

EXAMPLES = "examples"
"""Folder of stored adversarial examples; useless after the training."""
PHASES = "phases"
"""Folder of the checkpoints of second trainings; useless after the training."""

BATCH_SIZE = 128
"""Images per batch while :func:`fit` makes adversarial examples; affects time and memory only."""


@dataclass(frozen=True)
class Workplace:
    """Where a training runs and keeps its temporary files.

    Attributes:
        folder: folder of the checkpoint and of stored adversarial examples.
        identity: id of the run; a checkpoint of another run is refused.
        label: begins the progress lines and error messages.
        device: ``cpu`` or ``cuda``.
        batch_size: images per batch of stored adversarial examples.
        checkpoint_seconds: seconds between checkpoints.
        quiet: print no progress.
    """

    folder: Path
    identity: str
    label: str
    device: str
    batch_size: int
    checkpoint_seconds: float
    quiet: bool = False


def train(
    module: nn.Module,
    loss: loop.Loss,
    pixels: Pixels,
    labels: npt.NDArray,
    recipe: Recipe,
    seed: int,
    at: Workplace,
    prepare: Callable[[], None] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    ends: Callable[[Sequence[dict[str, float]]], bool] | None = None,
    layout: torch.memory_format = torch.channels_last,
    order: loop.Order | None = None,
    starts: Callable[[int], None] | None = None,
    coreset: Coreset | None = None,
) -> dict[str, Any]:
    """Train ``module`` in place, from scratch or from the last checkpoint.

    Args:
        loss, prepare: as for :func:`purifiers.core.loop.fit`.
        pixels, labels, recipe, seed, watch, ends, order, starts, coreset:
            as for :func:`purifiers.core.loop.fit`.
        layout: of the images that the loss receives.

    Returns:
        The summary of :func:`purifiers.core.loop.fit`.
    """

    def laid_out_loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        return loss(images.contiguous(memory_format=layout), labels, indices, seed)

    with rounding(recipe.precision):
        return loop.fit(
            module.train(),
            laid_out_loss,
            pixels,
            labels,
            replace(recipe, checkpoint_seconds=at.checkpoint_seconds),
            seed,
            at.folder / "checkpoint",
            at.identity,
            at.label,
            at.device,
            prepare,
            at.quiet,
            watch,
            ends,
            order,
            starts,
            coreset,
        )


def fit_method(
    method: Method,
    classifiers: Sequence[nn.Module],
    pixels: Pixels,
    labels: npt.NDArray,
    seed: int,
    at: Workplace,
    first: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fit a bound method in place by its own recipe, on stored examples if it needs any.

    A method's second training follows, see :meth:`purifiers.core.component.Method.next_phase`.

    Args:
        classifiers: the frozen classifiers to fit on.
        pixels, labels: training images, uint8 or float32 (n, C, H, W), and int64 (n,).
        seed: random seed of the training.
        first: summary of the first training, if the method has its weights already.

    Returns:
        The summary of :func:`purifiers.core.loop.fit`; under the name of the second training its
        own. ``train_seconds`` are those of both.
    """
    method.fit_on(classifiers, len(pixels))
    some = to_float(pixels[np.arange(min(len(pixels), 2))], at.device)
    every = all(runs_channels_last(classifier, some) for classifier in classifiers)
    layout = torch.channels_last if every else torch.contiguous_format

    def store_examples() -> None:
        numbers = range(len(classifiers))
        method.stored_examples = [_examples(method, n, pixels, labels, at, layout) for n in numbers]

    fit = method.traits.fit
    prepare = store_examples if fit and fit.stored_examples else None
    if first is not None:
        summary = first
        if prepare:
            prepare()
    else:
        recipe = method.recipe
        summary = train(
            method, method.fit_loss, pixels, labels, recipe, seed, at, prepare, layout=layout
        )
    phase = method.next_phase(pixels, labels)
    if phase is not None:
        summary = {**summary, **_second(phase, summary, seed, at)}
    method.end_fit()
    return summary


def _second(phase: Phase, first: dict[str, Any], seed: int, at: Workplace) -> dict[str, Any]:
    """Run a method's second training; what it adds to the summary of the first."""
    folder = at.folder / PHASES / phase.name
    folder.mkdir(parents=True, exist_ok=True)
    second = train(
        phase.part,
        phase.loss,
        phase.inputs,
        phase.labels,
        phase.recipe,
        derive_seed(seed, phase.name),
        replace(at, folder=folder, label=f"{at.label}, {phase.name}"),
        layout=torch.contiguous_format,
    )
    seconds = round(first["train_seconds"] + second["train_seconds"], 3)
    return {phase.name: second, "train_seconds": seconds}


def _examples(
    method: Method,
    number: int,
    pixels: Pixels,
    labels: npt.NDArray,
    at: Workplace,
    layout: torch.memory_format,
) -> npt.NDArray:
    """Adversarial training examples against one classifier, memory-mapped from a temporary file."""

    def work(start: int, stop: int) -> npt.NDArray:
        rows = torch.arange(start, stop)
        images = to_float(pixels[rows.numpy()], at.device)
        images = images.contiguous(memory_format=layout)
        truth = torch.from_numpy(np.asarray(labels)[start:stop]).to(at.device)
        return method.example(number, images, truth, rows).cpu().numpy()

    path = at.folder / EXAMPLES / f"{number}.npy"
    label = f"{at.label}, examples {number + 1}"
    shape = pixels[np.arange(1)].shape[1:]
    fill(path, len(pixels), shape, np.float32, work, at.batch_size, label, at.quiet)
    return np.load(path, mmap_mode="r")


def fit(
    method: Method,
    classifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Method:
    """Fit a method on your classifier, with the method's own recipe.

    The training is that of the tables: equal data and seed give equal weights on one processor.
    The method is bound first, so that earlier weights are lost. The classifier's mode and weights
    are left as they are, and so are torch's global random generators.

    Args:
        method: from :func:`purifiers.method`.
        classifier: images (n, C, H, W) to logits (n, classes); None only for methods that are
            fitted without one.
        images: training images, float32 in [0, 1] or uint8, (n, C, H, W).
        labels: true labels, int64 (n,).
        seed: random seed of weights, batches and noise.
        device: where to train; classifier and method are moved there. None: the classifier's.
        progress: print progress on stderr.

    Returns:
        ``method``: bound to the classifier, in evaluation mode, without gradients of its weights.

    Raises:
        UserError: a method that is not fitted, or wrong images, labels or device.
        RuntimeError: the loss is not finite.
    """
    name = _check_method(method, classifier)
    _check_training_set(images, labels)
    where = _device(device, classifier)
    if classifier is not None:
        classifier.to(where)
    own_seed = derive_seed(seed, "purifier")
    cuda = [where] if where.type == "cuda" else []
    with (
        tempfile.TemporaryDirectory(prefix="purifybench-") as folder,
        torch.random.fork_rng(cuda),
        contextlib.nullcontext() if classifier is None else frozen_meanwhile(classifier),
    ):
        torch.manual_seed(own_seed)
        method.bind(classifier, images.shape[1:])
        at = Workplace(
            folder=Path(folder),
            identity=name,
            label=f"fit {name}",
            device=str(where),
            batch_size=BATCH_SIZE,
            checkpoint_seconds=math.inf,
            quiet=not progress,
        )
        classifiers = [] if classifier is None else [classifier]
        pixels, truth = images.cpu().numpy(), labels.cpu().numpy()
        fit_method(method.to(where), classifiers, pixels, truth, own_seed, at)
        method.stored_examples = ()  # their file is deleted
    frozen(method)
    return method


def _check_method(method: Method, classifier: nn.Module | None) -> str:
    """The method's name, if it can be fitted on ``classifier``."""
    name = type(method).__name__
    if not isinstance(method, Method):
        raise UserError(f"fit: method is a {name}: create one with purifiers.method(name, ...)")
    if method.traits.fit is None:
        raise UserError(f"fit: {name} is not fitted: bind it and use it as it is")
    if classifier is None and method.traits.fit.is_using_classifier(vars(method)):
        raise UserError(f"fit: {name} is fitted on a classifier: pass one instead of None")
    return name


def _check_training_set(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8:
        check_images(images, "fit")
    elif images.dim() != 4:
        raise UserError(f"fit: images must be NCHW, got shape {tuple(images.shape)}")
    if check_labels(labels, images, "fit") < 0:
        raise UserError("fit: there are no images; give at least one")


def _device(device: str | torch.device | None, classifier: nn.Module | None) -> torch.device:
    if device is None:
        return torch.device("cpu") if classifier is None else device_of(classifier)
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        reason = str(error).split("\n")[0]
        raise UserError(f"fit: device {device!r} is not available ({reason}): use cpu") from None
