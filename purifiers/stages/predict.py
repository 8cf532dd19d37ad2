"""Classify a set of images behind several random draws of a defence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Method, equipped
from purifiers.core.evaluation import finite_logits, purified, states
from purifiers.core.shards import fill
from purifiers.core.spec import PredictSpec
from purifiers.stages._context import LOGITS, Context, Outcome
from purifiers.stages._opening import (
    adaptation,
    batches_for,
    open_classifier,
    open_images,
    open_method,
)


def run(folder: RunFolder, spec: PredictSpec, context: Context) -> Outcome:
    """Write ``logits.npy``, float32 (n, draws, classes), classified by the original classifier.

    Draws are purified one by one: each has a seed of its own, and a method takes one per call.
    On a processor, batching 5 draws of ADP is faster for a few images only, not for 25 or 125.

    Draw 0 is the draw that the stages ``purify`` and ``score`` use. With ``all_steps`` the logits
    are (n, draws, states, classes).

    Raises:
        RuntimeError: the logits are not finite.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    methods = [open_method(context, method, classifier) for method in spec.methods]
    # one for each draw, because it may carry over from batch to batch
    networks = [equipped(classifier, methods) for _ in range(spec.draws)]
    steps: tuple[int, ...] = ()
    if spec.all_steps:
        steps = (methods[0].traits.states_under(spec.methods[0].parameters),)

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        logits = []
        for draw, network in enumerate(networks, start=spec.first_draw):
            images_of_draw = _images(methods, batch, indices, spec, draw)
            logits += [finite_logits(network, seen) for seen in images_of_draw]
        by_draw = torch.stack(logits, dim=1).cpu().numpy()
        return by_draw.reshape(len(batch), spec.draws, *steps, images.classes)

    halved = fill(
        folder.path / LOGITS,
        len(images),
        (spec.draws, *steps, images.classes),
        np.float32,
        work,
        label=f"predict {folder.id}",
        **batches_for(methods, context),
    )
    return Outcome([LOGITS], {"n": len(images), **halved, **adaptation(methods)})


def _images(
    methods: list[Method], batch: Tensor, indices: Tensor, spec: PredictSpec, draw: int
) -> list[Tensor]:
    """The images that one draw classifies: the purified one, or all states."""
    if spec.all_steps:
        (method,) = methods
        return states(method, batch, spec.seed, indices, draw)
    for method in methods:
        batch = purified(method, batch, spec.seed, indices, draw)
    return [batch]
