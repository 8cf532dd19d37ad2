"""Training shared by the stages ``classifier`` and ``purifier``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core.artifacts import RunFolder
from purifiers.core.loop import Loss, fit
from purifiers.core.noise import derive_seed
from purifiers.core.recipe import Recipe
from purifiers.core.spec import ClassifierSpec, PurifierSpec
from purifiers.stages._context import WEIGHTS, Context, Data, Outcome, device_name, save_weights
from purifiers.stages._opening import Rows


def fit_and_save(
    folder: RunFolder,
    spec: ClassifierSpec | PurifierSpec,
    context: Context,
    data: Data,
    module: nn.Module,
    loss: Loss,
    recipe: Recipe,
    prepare: Callable[[], None] | None = None,
) -> Outcome:
    """Train ``module`` from scratch or from the last checkpoint, and write its weights.

    Args:
        loss, prepare: as for :func:`purifiers.core.loop.fit`; the loss receives images in
            channels-last layout.
    """
    indices = data.training_indices(spec.train)

    def channels_last_loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return loss(images, labels, indices, seed)

    summary = fit(
        module.train(),
        channels_last_loss,
        Rows(data.images["train"], indices),
        data.labels["train"][indices],
        replace(recipe, checkpoint_seconds=context.checkpoint_seconds),
        derive_seed(spec.seed, folder.stage),
        folder.path / "checkpoint",
        folder.id,
        f"{folder.stage} {folder.id}",
        context.device,
        prepare,
    )
    return _saved(folder, context, module, summary)


def save_unchanged(folder: RunFolder, context: Context, module: nn.Module) -> Outcome:
    """Write the weights that ``module`` has, without training."""
    return _saved(folder, context, module, {"steps": 0})


def _saved(
    folder: RunFolder, context: Context, module: nn.Module, summary: dict[str, Any]
) -> Outcome:
    save_weights(module, folder)
    parameters = sum(p.numel() for p in module.parameters())
    device = device_name(context.device)
    return Outcome([WEIGHTS], {**summary, "parameters": parameters, "device_name": device})
