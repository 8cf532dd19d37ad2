"""Classify a set and keep one row per image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.shards import fill
from purifiers.stages._context import (
    SCORES,
    Context,
    ImageSet,
    Outcome,
    open_classifier,
    open_images,
    open_method,
    save_rows,
)


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Write ``scores.parquet``: index, label, prediction, correct, and two pairs of distances to
    the clean image: linf and l2 of what is classified, attack_linf and attack_l2 of what the
    attack made, before anything purified it.

    With a detector there is a column ``detected``: what it says of the images before anything
    purified them. An attacked image is then correct when it is classified so *or* detected, a
    clean one when it is classified so and *not* detected, as `Trevillie/MagNet` counts.

    Raises:
        RuntimeError: logits that are not finite.
    """
    images = open_images(context, spec["images"])
    attacked = _attacked(context, spec["images"])
    classifier = open_classifier(context, spec["classifier"])
    measured = folder.path / "measured.npy"
    detector = open_method(context, spec["detector"], classifier) if "detector" in spec else None

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, _ = images.batch(start, stop, context.device)
        with torch.no_grad():
            logits = classifier(batch)
        if not torch.isfinite(logits).all():
            raise RuntimeError("the classifier gave logits that are not finite")
        clean = images.clean_batch(start, stop)
        own = _distances(batch.cpu(), clean)
        made = own
        if attacked is not None:
            made = _distances(attacked.batch(start, stop, "cpu")[0], clean)
        columns = [logits.argmax(1).cpu(), *own, *made]
        if detector is not None:
            given = batch if attacked is None else attacked.batch(start, stop, context.device)[0]
            with torch.no_grad():
                columns.append(detector.detected(given).cpu())
        return torch.stack([column.double() for column in columns], dim=1).numpy()

    label = f"score {folder.id}"
    width = 5 if detector is None else 6
    halved = fill(measured, len(images), (width,), np.float64, work, context.batch_size, label)
    rows = np.load(measured)
    prediction = rows[:, 0].astype(np.int64)
    correct = prediction == images.labels
    detected = {} if detector is None else {"detected": rows[:, 5] > 0}
    if detected:
        found = detected["detected"]
        correct = correct | found if spec["attack"] else correct & ~found
    table = pa.table(
        {
            "index": images.indices,
            "label": images.labels,
            "prediction": prediction,
            "correct": correct,
            "linf": rows[:, 1].astype(np.float32),
            "l2": rows[:, 2].astype(np.float32),
            "attack_linf": rows[:, 3].astype(np.float32),
            "attack_l2": rows[:, 4].astype(np.float32),
            **detected,
        }
    )
    save_rows(table, folder)
    measured.unlink()
    return Outcome([SCORES], {"n_correct": int(correct.sum()), "n": len(correct), **halved})


def _distances(made: torch.Tensor, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L-infinity and L2 distance of each image, (n,) each."""
    shift = (made - clean).flatten(1)
    return shift.abs().amax(1), shift.norm(dim=1)


def _attacked(context: Context, images: dict[str, Any]) -> ImageSet | None:
    """The set that purification started from: adversarial, or clean where nothing was attacked.
    None where nothing was purified."""
    if images.get("stage") != "purify":
        return None
    while images.get("stage") == "purify":
        images = context.folder("purify", images["run"]).record(verify=False)["spec"]["images"]
    return open_images(context, images)
