"""Train a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.noise import derive_seed
from purifiers.core.spec import ClassifierSpec
from purifiers.stages._context import Context, Outcome
from purifiers.stages._fit import fit_and_save, save_unchanged
from purifiers.stages._opening import new_classifier, new_component, on_device, open_data


def run(folder: RunFolder, spec: ClassifierSpec, context: Context) -> Outcome:
    """Write the weights of a classifier.

    It is trained from its initial weights or from the last checkpoint, unless the training keeps
    the weights that the classifier brings.
    """
    data = open_data(context, spec.data)
    torch.manual_seed(derive_seed(spec.seed, folder.stage))
    classifier = on_device(new_classifier(spec.classifier, data), context)
    brought = classifier.load_pretrained()
    training = new_component("training", spec.training)
    if training.traits.keeps_weights:
        return _with(brought, save_unchanged(folder, context, classifier))

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        return training.loss(classifier, images, labels, indices, seed)

    trained = fit_and_save(folder, spec, context, data, classifier, loss, training.recipe)
    return _with(brought, trained)


def _with(brought: dict[str, Any], outcome: Outcome) -> Outcome:
    return Outcome(outcome.files, {**outcome.summary, **brought})
