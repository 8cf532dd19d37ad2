"""Purify a set of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.evaluation import defender_seed, purified
from purifiers.core.shards import fill
from purifiers.core.spec import PurifySpec
from purifiers.stages._context import IMAGES, TRANSFORMED, Context, Outcome
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: PurifySpec, context: Context) -> Outcome:
    """Apply one method to every image, batch by batch.

    A method with a random transform also leaves ``transformed.npy``, uint8, for pictures.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    method = open_method(context, spec.method, classifier)

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        return purified(method, batch, spec.seed, indices).cpu().numpy()

    def transformed(start: int, stop: int) -> Tensor | None:
        batch, _, indices = images.batch(start, stop, context.device)
        with torch.no_grad():
            return method.transformed(batch, defender_seed(spec.seed), indices)

    def pixels(start: int, stop: int) -> npt.NDArray:
        batch = transformed(start, stop)
        assert batch is not None
        return (255 * batch).round().byte().cpu().numpy()

    shape = len(images), images.images.shape[1:]
    label = f"purify {folder.id}"
    halved = fill(folder.path / IMAGES, *shape, np.float32, work, context.batch_size, label)
    files = [IMAGES]
    if len(images) and transformed(0, 1) is not None:
        files.append(TRANSFORMED)
        path = folder.path / TRANSFORMED
        fill(path, *shape, np.uint8, pixels, context.batch_size, label, quiet=True)
    return Outcome(files, {"n": len(images), **halved})
