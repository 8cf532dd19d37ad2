"""Fit a purifier to a frozen classifier, or to several."""

from __future__ import annotations

from typing import Any

import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.noise import derive_seed
from purifiers.stages._context import Context, Outcome, new_method, open_classifier, open_data
from purifiers.stages._fit import fit_and_save


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Fit from scratch or from the last checkpoint, and write the weights.

    ``spec["ensemble"]`` names the classifiers that it is fitted on beside ``spec["classifier"]``,
    which is None for a method that needs none (``ALONE``).
    """
    data = open_data(context, spec["data"])
    fitted_on = (spec["classifier"], *spec.get("ensemble", ()))
    classifiers = [open_classifier(context, run_id) for run_id in fitted_on if run_id is not None]
    torch.manual_seed(derive_seed(spec["seed"], folder.stage))
    method = new_method(spec["method"], next(iter(classifiers), None), data.shape, context)
    method.fit_on(classifiers, spec["train"])
    return fit_and_save(folder, spec, context, data, method, method.fit_loss, method.recipe)
