"""Estimate the mutual information of two layers of a classifier."""

from __future__ import annotations

import pyarrow as pa
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.information import mutual_information
from purifiers.core.noise import derive_seed
from purifiers.core.spec import InformationSpec
from purifiers.core.taps import tapped_features
from purifiers.stages._context import SCORES, Context, Outcome, save_rows
from purifiers.stages._opening import open_classifier, open_images


def run(folder: RunFolder, spec: InformationSpec, context: Context) -> Outcome:
    """Write ``scores.parquet``, one row per held-out image.

    The columns are index, label and ``information`` in nats. The mean of ``information`` is the
    lower bound of :func:`purifiers.core.information.mutual_information` on the features of the two
    layers. The features are averaged over the positions of the image.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    settings = {key: value for key, value in spec.estimator.items() if key != "version"}
    taps = settings.pop("taps")
    parts: list[list[torch.Tensor]] = []
    for start in range(0, len(images), context.batch_size):
        batch, _, _ = images.batch(start, start + context.batch_size, context.device)
        with torch.no_grad():
            features = tapped_features(classifier, batch, taps)
        parts.append([feature.mean(dim=(2, 3)) for feature in features])
    first, second = (torch.cat(features) for features in zip(*parts, strict=True))
    rows, terms = mutual_information(
        first, second, **settings, seed=derive_seed(spec.seed, folder.stage)
    )
    table = pa.table(
        {
            "index": images.indices[rows.numpy()],
            "label": images.labels[rows.numpy()],
            "information": terms.numpy(),
        }
    )
    save_rows(table, folder)
    return Outcome([SCORES], {"n": len(rows), "n_trained": len(images) - len(rows)})
