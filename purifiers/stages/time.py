"""Measure the time of a purification."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.evaluation import defender_seed
from purifiers.core.shards import out_of_memory
from purifiers.core.spec import TimeSpec
from purifiers.stages._context import SCORES, Context, Outcome, device_name, save_rows
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: TimeSpec, context: Context) -> Outcome:
    """Write ``scores.parquet``, one row per image that is purified alone.

    The columns are index, ``seconds`` (wall clock) and ``cpu_seconds`` (of this process). The first
    image of the set is a warm-up.

    Afterwards each larger batch size is timed once. This ends at the first size for which images,
    memory or time are insufficient; the time is estimated from the previous size. The summary has
    the seconds per image of each size, the lowest of them and its size. Reading and classifying
    images are not timed.

    Measurements differ between runs and are valid only if the machine is otherwise idle. The
    workflow therefore reserves all cores for the job, whatever number of threads it uses.

    Raises:
        UserError: fewer than two images.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    methods = [open_method(context, method, classifier) for method in spec.methods]
    seed = defender_seed(spec.seed)
    timing = spec.timing
    count = min(timing.images, len(images) - 1)
    if count < 1:
        raise UserError("timing needs at least 2 images; the first is a warm-up")

    def time_batch(start: int, stop: int) -> tuple[float, float]:
        """Wall-clock and process seconds of the purification of one batch."""
        batch, _, indices = images.batch(start, stop, context.device)

        def purify() -> None:
            purified = batch
            with torch.no_grad():
                for method in methods:
                    purified = method.purify(purified, seed, indices)

        return _seconds(purify, context.device)

    started = time.perf_counter()
    time_batch(0, 1)
    alone = np.array([time_batch(row, row + 1) for row in range(1, count + 1)])
    per_image = {1: float(alone[:, 0].mean())}
    for size in timing.batches:
        remaining = timing.limit_seconds - (time.perf_counter() - started)
        if size > len(images) or size * list(per_image.values())[-1] > remaining:
            break
        try:
            per_image[size] = time_batch(0, size)[0] / size
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            break
    best = min(per_image, key=lambda size: per_image[size])
    table = pa.table(
        {
            "index": images.indices[1 : count + 1],
            "seconds": alone[:, 0],
            "cpu_seconds": alone[:, 1],
        }
    )
    save_rows(table, folder)
    summary = {
        "n": count,
        "cpu_seconds_per_image": float(alone[:, 1].mean()),
        "seconds_per_image_batched": per_image[best],
        "best_batch": best,
        "batches": {str(size): seconds for size, seconds in per_image.items()},
        "device_name": device_name(context.device),
        "threads": context.threads,
    }
    return Outcome([SCORES], summary)


def _seconds(work: Callable[[], None], device: str) -> tuple[float, float]:
    """Wall-clock and process seconds of one call of ``work``."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    wall, process = time.perf_counter(), time.process_time()
    work()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - process
