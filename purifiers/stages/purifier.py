"""Fit a purifier to a frozen classifier, or to several."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Method
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.stages._context import (
    EXAMPLES,
    Context,
    Outcome,
    new_method,
    open_classifier,
    open_data,
    open_images,
)
from purifiers.stages._fit import fit_and_save


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Fit from scratch or from the last checkpoint, and write the weights.

    ``spec["ensemble"]`` names the classifiers that it is fitted on beside ``spec["classifier"]``,
    which is None for a method that needs none.
    """
    data = open_data(context, spec["data"])
    fitted_on = (spec["classifier"], *spec.get("ensemble", ()))
    classifiers = [open_classifier(context, run_id) for run_id in fitted_on if run_id is not None]
    torch.manual_seed(derive_seed(spec["seed"], folder.stage))
    method = new_method(spec["method"], next(iter(classifiers), None), data.shape, context)
    method.fit_on(classifiers, spec["train"])

    def make_examples() -> None:
        method.stored_examples = [
            _examples(number, method, folder, spec, context) for number in range(len(classifiers))
        ]

    fit = method.traits.fit
    prepare = make_examples if fit and fit.stored_examples else None
    return fit_and_save(
        folder, spec, context, data, method, method.fit_loss, method.recipe, prepare
    )


def _examples(
    number: int, method: Method, folder: RunFolder, spec: dict[str, Any], context: Context
) -> npt.NDArray:
    """The training examples against one classifier, on disk until the fit is over."""
    subset = {"split": "train", "n": spec["train"], "seed": 0}
    clean = open_images(context, {"data": spec["data"], "subset": subset, "run": None})

    def work(start: int, stop: int) -> npt.NDArray:
        images, labels, _ = clean.batch(start, stop, context.device)
        return method.example(number, images, labels, torch.arange(start, stop)).cpu().numpy()

    path = folder.path / EXAMPLES / f"{number}.npy"
    label = f"{folder.stage} {folder.id}, examples {number + 1}"
    shape = clean.images.shape[1:]
    fill(path, len(clean), shape, np.float32, work, context.batch_size, label)
    return np.load(path, mmap_mode="r")
