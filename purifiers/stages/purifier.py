"""Fit a purifier to a frozen classifier."""

from __future__ import annotations

from typing import Any

import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.noise import derive_seed
from purifiers.stages._context import Context, Outcome, new_method, open_classifier, open_data
from purifiers.stages._fit import fit_and_save


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Fit from scratch or from the last checkpoint, and write the weights."""
    data = open_data(context, spec["data"])
    classifier = open_classifier(context, spec["classifier"])
    torch.manual_seed(derive_seed(spec["seed"], folder.stage))
    method = new_method(spec["method"], classifier, context)
    return fit_and_save(folder, spec, context, data, method, method.fit_loss, method.recipe)
