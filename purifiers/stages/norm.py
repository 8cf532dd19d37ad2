"""Measure the norm of a method's score at images, attacked or purified by one step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.evaluation import defender_seed
from purifiers.core.shards import fill
from purifiers.core.spec import NormSpec
from purifiers.stages._context import SCORES, Context, Outcome, save_rows
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: NormSpec, context: Context) -> Outcome:
    """Write ``scores.parquet`` with index, label and ``score_norm``, one row per image.

    ``score_norm`` is the L2 norm of the method's score at the image, or at the image after one step
    of the method (Yoon et al. 2021, appendix F).
    """
    images = open_images(context, spec.images)
    method = open_method(context, spec.method, open_classifier(context, spec.classifier))
    path = folder.path / "norms.npy"

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        with torch.no_grad():
            if spec.purified:
                batch = method.step(batch, defender_seed(spec.seed), indices)
            return method.score(batch).flatten(1).norm(dim=1).cpu().numpy()

    label = f"norm {folder.id}"
    halved = fill(path, len(images), (), np.float32, work, context.batch_size, label)
    norms = np.load(path)
    table = pa.table({"index": images.indices, "label": images.labels, "score_norm": norms})
    save_rows(table, folder)
    path.unlink()
    return Outcome([SCORES], {"n": len(norms), **halved})
