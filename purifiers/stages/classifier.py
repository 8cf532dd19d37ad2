"""Train a classifier."""

from __future__ import annotations

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
    training = new_component("training", spec.training)
    if training.traits.keeps_weights:
        return save_unchanged(folder, context, classifier)

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        return training.loss(classifier, images, labels, indices, seed)

    return fit_and_save(folder, spec, context, data, classifier, loss, training.recipe)
