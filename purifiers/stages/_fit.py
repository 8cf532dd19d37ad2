"""Training shared by the stages ``classifier`` and ``purifier``."""

from __future__ import annotations

from typing import Any

from torch import nn

from purifiers.core.artifacts import RunFolder
from purifiers.core.fitting import Workplace
from purifiers.core.spec import ClassifierSpec, PurifierSpec
from purifiers.stages._context import WEIGHTS, Context, Data, Outcome, device_name, save_weights
from purifiers.stages._opening import Rows


def training_set(data: Data, spec: ClassifierSpec | PurifierSpec) -> tuple[Rows, Any]:
    """The images and labels, int64 (n,), that a run trains on."""
    indices = data.training_indices(spec.train)
    return Rows(data.images["train"], indices), data.labels["train"][indices]


def workplace(folder: RunFolder, context: Context) -> Workplace:
    """The run's folder and the resources of the job."""
    return Workplace(
        folder=folder.path,
        identity=folder.id,
        label=f"{folder.stage} {folder.id}",
        device=context.device,
        batch_size=context.batch_size,
        checkpoint_seconds=context.checkpoint_seconds,
    )


def saved(
    folder: RunFolder, context: Context, module: nn.Module, summary: dict[str, Any]
) -> Outcome:
    """Write the weights of a trained module; the outcome with ``summary`` and its size."""
    save_weights(module, folder)
    parameters = sum(p.numel() for p in module.parameters())
    device = device_name(context.device)
    return Outcome([WEIGHTS], {**summary, "parameters": parameters, "device_name": device})
