"""Train a classifier."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.fitting import train
from purifiers.core.noise import derive_seed
from purifiers.core.spec import ClassifierSpec
from purifiers.core.training_images import to_float
from purifiers.stages._context import Context, Outcome
from purifiers.stages._fit import saved, training_set, workplace
from purifiers.stages._opening import new_classifier, new_component, on_device, open_data

WATCHED = 200
"""Training images that a training may watch after each epoch; our choice."""


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

    pixels, labels = training_set(data, spec)
    at = workplace(folder, context)
    targets, earlier = training.targets(classifier, pixels, labels, seed, at)
    rows = np.arange(min(WATCHED, len(pixels)))
    images = to_float(pixels[rows], context.device)
    watched = (torch.from_numpy(labels[rows]).to(context.device), torch.from_numpy(rows))
    summary = train(
        classifier,
        loss,
        pixels,
        targets,
        training.recipe,
        seed,
        at,
        watch=lambda: training.watch(classifier, images, *watched, seed),
        ends=training.ends,
        order=training.order(len(pixels), seed),
        starts=training.starts,
        coreset=training.coreset(classifier),
    )
    summary["train_seconds"] += sum(part["train_seconds"] for part in earlier.values())
    summary |= earlier
    note = training.note(summary.get("watched", ()))
    if note:
        summary["note"] = note
    return saved(folder, context, classifier, {**summary, **brought})
