"""Predict and certify by randomised smoothing of a defence (Cohen et al. 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import equipped
from purifiers.core.evaluation import finite_logits
from purifiers.core.finite import checked_at_end
from purifiers.core.noise import derive_seed, keys_on, normal_on
from purifiers.core.shards import fill
from purifiers.core.smoothing import cast_votes, certify, predict
from purifiers.core.spec import SmoothSpec
from purifiers.stages._context import SCORES, Context, Outcome, save_rows
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: SmoothSpec, context: Context) -> Outcome:
    """Write ``scores.parquet``, one row per image.

    The columns are index, label, prediction (-1: abstained), correct and ``radius``, the certified
    L2 radius, of CERTIFY; and ``predict_correct``, whether PREDICT returns the label for the votes
    of the estimation. Each vote adds Gaussian noise to the image, without clipping, and classifies
    it behind the methods.

    Raises:
        RuntimeError: the logits are not finite.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    methods = [open_method(context, method, classifier) for method in spec.methods]
    network = equipped(classifier, methods)
    smoothing = spec.smoothing
    path = folder.path / "votes.npy"

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)

        def logits(clean: Tensor, draw: int) -> Tensor:
            seed = derive_seed(spec.seed, "smoothing", draw)
            keys = keys_on(seed, indices.to(clean.device), "smoothing")
            noisy = clean + smoothing.sigma * normal_on(keys, clean.shape[1:])
            for method in methods:
                noisy = method.purify(noisy, seed, indices)
            return finite_logits(network, noisy)

        def estimated(clean: Tensor, draw: int) -> Tensor:
            return logits(clean, smoothing.selection + draw)

        with torch.no_grad(), checked_at_end(batch.device):
            selection = cast_votes(logits, batch, smoothing.selection, images.classes)
            estimation = cast_votes(estimated, batch, smoothing.estimation, images.classes)
        return np.stack([selection, estimation], axis=1)

    shape = (2, images.classes)
    label = f"smooth {folder.id}"
    halved = fill(path, len(images), shape, np.int64, work, context.batch_size, label)
    selection, estimation = np.load(path).transpose(1, 0, 2)
    certified = certify(selection, estimation, smoothing.sigma, smoothing.alpha)
    correct = certified.predictions == images.labels
    predicted = predict(estimation, smoothing.alpha)
    table = pa.table(
        {
            "index": images.indices,
            "label": images.labels,
            "prediction": certified.predictions,
            "correct": correct,
            "radius": np.where(correct, certified.radii, 0.0),
            "predict_correct": predicted == images.labels,
        }
    )
    save_rows(table, folder)
    path.unlink()
    return Outcome([SCORES], {"n_correct": int(correct.sum()), "n": len(correct), **halved})
