"""Classify a set of images behind several random draws of a defence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import equipped
from purifiers.core.evaluation import finite_logits, purified
from purifiers.core.shards import fill
from purifiers.core.spec import PredictSpec
from purifiers.stages._context import LOGITS, Context, Outcome
from purifiers.stages._opening import (
    batches_for,
    open_classifier,
    open_images,
    open_method,
)


def run(folder: RunFolder, spec: PredictSpec, context: Context) -> Outcome:
    """Write ``logits.npy``, float32 (n, draws, classes), classified by the original classifier.

    Draw 0 is the draw that the stages ``purify`` and ``score`` use.

    Raises:
        RuntimeError: the logits are not finite.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    methods = [open_method(context, method, classifier) for method in spec.methods]
    network = equipped(classifier, methods)

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        logits = []
        for draw in range(spec.first_draw, spec.first_draw + spec.draws):
            seen = batch
            for method in methods:
                seen = purified(method, seen, spec.seed, indices, draw)
            logits.append(finite_logits(network, seen))
        return torch.stack(logits, dim=1).cpu().numpy()

    halved = fill(
        folder.path / LOGITS,
        len(images),
        (spec.draws, images.classes),
        np.float32,
        work,
        label=f"predict {folder.id}",
        **batches_for(methods, context),
    )
    return Outcome([LOGITS], {"n": len(images), **halved})
