"""Train a classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.fitting import train
from purifiers.core.noise import derive_seed
from purifiers.core.spec import ClassifierSpec
from purifiers.stages._context import Context, Outcome
from purifiers.stages._fit import saved, training_set, workplace
from purifiers.stages._opening import new_classifier, new_component, on_device, open_data


def run(folder: RunFolder, spec: ClassifierSpec, context: Context) -> Outcome:
    """Write the weights of a classifier.

    It is trained from its initial weights or from the last checkpoint, unless the training keeps
    the weights that the classifier brings.
    """
    data = open_data(context, spec.data)
    seed = derive_seed(spec.seed, folder.stage)
    torch.manual_seed(seed)
    classifier = on_device(new_classifier(spec.classifier, data), context)
    brought = classifier.load_pretrained()
    training = new_component("training", spec.training)
    if training.traits.keeps_weights:
        return saved(folder, context, classifier, {"steps": 0, **brought})

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        return training.loss(classifier, images, labels, indices, seed)

    summary = train(
        classifier,
        loss,
        *training_set(data, spec),
        training.recipe,
        seed,
        workplace(folder, context),
    )
    return saved(folder, context, classifier, {**summary, **brought})
