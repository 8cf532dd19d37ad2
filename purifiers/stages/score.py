"""Classify a set and keep one row per image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.shards import fill
from purifiers.stages._context import Context, Outcome, open_classifier, open_images

SCORES = "scores.parquet"


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Write ``scores.parquet``: index, label, prediction, correct, and the distances linf and l2
    of the classified image to the clean one.

    Raises:
        RuntimeError: logits that are not finite.
    """
    images = open_images(context, spec["images"])
    classifier = open_classifier(context, spec["classifier"])
    measured = folder.path / "measured.npy"

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, _ = images.batch(start, stop, context.device)
        with torch.no_grad():
            logits = classifier(batch)
        if not torch.isfinite(logits).all():
            raise RuntimeError("the classifier gave logits that are not finite")
        shift = (batch.cpu() - images.clean_batch(start, stop)).flatten(1)
        columns = [logits.argmax(1).cpu().double(), shift.abs().amax(1), shift.norm(dim=1)]
        return torch.stack([column.double() for column in columns], dim=1).numpy()

    fill(measured, len(images), (3,), np.float64, work, context.batch_size, f"score {folder.id}")
    rows = np.load(measured)
    prediction = rows[:, 0].astype(np.int64)
    correct = prediction == images.labels
    table = pa.table(
        {
            "index": images.indices,
            "label": images.labels,
            "prediction": prediction,
            "correct": correct,
            "linf": rows[:, 1].astype(np.float32),
            "l2": rows[:, 2].astype(np.float32),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(folder.path / SCORES, buffer.getvalue())
    measured.unlink()
    return Outcome([SCORES], {"n_correct": int(correct.sum()), "n": len(correct)})
