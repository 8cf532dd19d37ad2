"""Fit a purifier to a frozen classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed
from purifiers.stages._context import (
    WEIGHTS,
    Context,
    Outcome,
    Rows,
    new_method,
    open_classifier,
    open_data,
    save_weights,
)


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Fit from scratch or from the last checkpoint, and write the weights."""
    data = open_data(context, spec["data"])
    chosen = data.subset("train", spec["train"])
    classifier = open_classifier(context, spec["classifier"])
    torch.manual_seed(derive_seed(spec["seed"], "purifier"))
    method = new_method(spec["method"], classifier, context).train()

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return method.fit_loss(images, labels, indices, seed)

    summary = fit(
        method,
        loss,
        Rows(data.images["train"], chosen),
        data.labels["train"][chosen],
        replace(method.recipe, checkpoint_seconds=context.checkpoint_seconds),
        derive_seed(spec["seed"], "purifier"),
        folder.path / "checkpoint",
        folder.id,
        f"fit {folder.id}",
        context.device,
    )
    save_weights(method, folder)
    parameters = sum(p.numel() for p in method.parameters())
    return Outcome([WEIGHTS], {**summary, "parameters": parameters})
