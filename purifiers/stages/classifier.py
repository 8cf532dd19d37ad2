"""Train a classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed
from purifiers.stages._context import (
    WEIGHTS,
    Context,
    Outcome,
    Rows,
    new_classifier,
    on_device,
    open_data,
    save_weights,
)


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Train from scratch or from the last checkpoint, and write the weights."""
    data = open_data(context, spec["data"])
    chosen = data.subset("train", spec["train"])
    torch.manual_seed(derive_seed(spec["seed"], "classifier"))
    classifier = new_classifier(spec["classifier"], data)
    classifier = on_device(classifier, context).train()
    training = build(
        registry.load("training", spec["training"]["component"]), **spec["training"]["parameters"]
    )

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return training.loss(classifier, images, labels, indices, seed)

    summary = fit(
        classifier,
        loss,
        Rows(data.images["train"], chosen),
        data.labels["train"][chosen],
        replace(training.recipe, checkpoint_seconds=context.checkpoint_seconds),
        derive_seed(spec["seed"], "classifier"),
        folder.path / "checkpoint",
        folder.id,
        f"train {folder.id}",
        context.device,
    )
    save_weights(classifier, folder)
    parameters = sum(p.numel() for p in classifier.parameters())
    return Outcome([WEIGHTS], {**summary, "parameters": parameters})
