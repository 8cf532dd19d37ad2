"""Fit a method, on frozen classifiers if it uses any."""

from __future__ import annotations

import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.fitting import fit_method
from purifiers.core.noise import derive_seed
from purifiers.core.spec import PurifierSpec
from purifiers.stages._context import Context, Outcome, load_weights
from purifiers.stages._fit import saved, training_set, workplace
from purifiers.stages._opening import new_method, open_classifier, open_data


def run(folder: RunFolder, spec: PurifierSpec, context: Context) -> Outcome:
    """Fit the method from scratch or from the last checkpoint, and write its weights."""
    data = open_data(context, spec.data)
    classifiers = [open_classifier(context, run_id) for run_id in spec.classifiers]
    seed = derive_seed(spec.seed, folder.stage)
    torch.manual_seed(seed)
    method = new_method(spec.method, next(iter(classifiers), None), data.shape, context)
    images, labels = training_set(data, spec)
    first = None
    if spec.first is not None:
        trained = context.folder(folder.stage, spec.first)
        load_weights(method, trained, exactly=False)
        first = trained.record().summary
    at = workplace(folder, context)
    summary = fit_method(method, classifiers, images, labels, seed, at, first)
    return saved(folder, context, method, summary)
