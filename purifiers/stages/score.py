"""Classify a set of images and write one row per image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from purifiers.core.ancestry import image_history
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import equipped
from purifiers.core.draws import prediction
from purifiers.core.errors import UserError
from purifiers.core.evaluation import Scored, distances, scored
from purifiers.core.shards import fill
from purifiers.core.spec import ImagesSpec, PurifySpec, ScoreSpec
from purifiers.stages._context import SCORES, Context, Outcome, save_rows
from purifiers.stages._opening import (
    ImageSet,
    adaptation,
    batches_for,
    open_classifier,
    open_images,
    open_logits,
    open_method,
)


def run(folder: RunFolder, spec: ScoreSpec, context: Context) -> Outcome:
    """Write ``scores.parquet``, one row per image.

    The columns are index, label, prediction, correct and distances to the clean image: ``linf``
    and ``l2`` of the classified image (nan if the prediction combines several random draws),
    ``attack_linf`` and ``attack_l2`` of the adversarial image before purification.

    With a detector there is a column ``detected``: its decision on the image before purification.
    An attacked image then counts as correct if it is classified correctly *or* detected. A clean
    image counts as correct if it is classified correctly and *not* detected. `Trevillie/MagNet`
    counts in the same way.

    Raises:
        RuntimeError: the logits are not finite.
    """
    images = open_images(context, spec.images)
    attacked = _attacked(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    rows_path = folder.path / "measured.npy"
    detector = open_method(context, spec.detector, classifier) if spec.detector else None
    restorers = [open_method(context, method, classifier) for method in spec.restorers]
    network = equipped(classifier, restorers)
    predict_runs = [open_logits(context, run, images) for run in spec.predictions]

    def work(start: int, stop: int) -> npt.NDArray:
        batch, labels, _ = images.batch(start, stop, context.device)
        clean = images.clean_batch(start, stop)
        unpurified = batch if attacked is None else attacked.batch(start, stop, "cpu")[0]
        if predict_runs:
            logits = np.concatenate([run[start:stop] for run in predict_runs], axis=1)
            combined = logits[:, : spec.draws].reshape(stop - start, -1, images.classes)
            draws = torch.from_numpy(combined)
            unknown = torch.full((stop - start,), torch.nan)
            measured = Scored(prediction(draws, labels.cpu(), spec.combine_draws), unknown, unknown)
        else:
            measured = scored(network, batch, clean)
        attack_distances = (measured.linf, measured.l2)
        if predict_runs or attacked is not None:
            attack_distances = distances(unpurified.cpu(), clean)
        columns = [measured.prediction, measured.linf, measured.l2, *attack_distances]
        if detector is not None:
            with torch.no_grad():
                columns.append(detector.detected(unpurified.to(context.device)).cpu())
        return torch.stack([column.double() for column in columns], dim=1).numpy()

    label = f"score {folder.id}"
    width = 5 if detector is None else 6
    batches = batches_for(restorers, context)
    halved = fill(rows_path, len(images), (width,), np.float64, work, label=label, **batches)
    rows = np.load(rows_path)
    predicted = rows[:, 0].astype(np.int64)
    correct = predicted == images.labels
    detected = {} if detector is None else {"detected": rows[:, 5] > 0}
    if detected:
        flagged = detected["detected"]
        correct = correct | flagged if spec.attack else correct & ~flagged
    table = pa.table(
        {
            "index": images.indices,
            "label": images.labels,
            "prediction": predicted,
            "correct": correct,
            "linf": rows[:, 1].astype(np.float32),
            "l2": rows[:, 2].astype(np.float32),
            "attack_linf": rows[:, 3].astype(np.float32),
            "attack_l2": rows[:, 4].astype(np.float32),
            **detected,
        }
    )
    save_rows(table, folder)
    rows_path.unlink()
    counts = {"n_correct": int(correct.sum()), "n": len(correct)}
    return Outcome([SCORES], {**counts, **halved, **adaptation(restorers)})


def _attacked(context: Context, images: ImagesSpec) -> ImageSet | None:
    """The set before purification, adversarial or clean; None if ``images`` are not purified."""
    if images.stage != "purify":
        return None
    for step, record in image_history(context.runs_root, images):
        if step.stage == "attack":
            return open_images(context, step)
        if record is None:
            raise UserError(f"purify {step.run}: this run is not finished; start its stage again")
        images = record.spec_as(PurifySpec).images
    return open_images(context, images)
