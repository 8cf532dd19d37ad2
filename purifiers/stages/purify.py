"""Purify a set of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.images import check_images
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.core.spec import PurifySpec
from purifiers.stages._context import IMAGES, Context, Outcome
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: PurifySpec, context: Context) -> Outcome:
    """Apply one method to every image, batch by batch."""
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    method = open_method(context, spec.method, classifier)
    seed = derive_seed(spec.seed, "defender")

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        with torch.no_grad():
            purified = method.purify(batch, seed, indices)
        check_images(purified, f"purified by {spec.method.component}")
        return purified.cpu().numpy()

    halved = fill(
        folder.path / IMAGES,
        len(images),
        images.images.shape[1:],
        np.float32,
        work,
        context.batch_size,
        f"purify {folder.id}",
    )
    return Outcome([IMAGES], {"n": len(images), **halved})
