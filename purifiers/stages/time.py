"""Take the time of a purification."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed
from purifiers.core.shards import out_of_memory
from purifiers.core.spec import TimeSpec
from purifiers.stages._context import SCORES, Context, Outcome, device_name, save_rows
from purifiers.stages._opening import open_classifier, open_images, open_method


def run(folder: RunFolder, spec: TimeSpec, context: Context) -> Outcome:
    """Write ``scores.parquet``: index, ``seconds`` by the wall clock and ``cpu_seconds`` of this
    process, a row per image that was purified on its own.

    The first image of the set only warms up. Then larger batches are tried, each once, as long as
    there are images and memory and, judged by the batch before, time enough; the summary has the
    seconds per image of each, the best of them and its size. Neither reading images nor classifying
    them is timed.

    These are measurements: no two runs give the same bits, and they mean something only on a
    machine that does nothing else meanwhile. The workflow gives the job all cores for that, however
    many threads it uses.

    Raises:
        UserError: fewer than two images.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    methods = [open_method(context, method, classifier) for method in spec.methods]
    seed = derive_seed(spec.seed, "defender")
    timing = spec.timing
    count = min(timing.images, len(images) - 1)
    if count < 1:
        raise UserError("timing needs at least 2 images; the first is a warm-up")

    def taken(start: int, stop: int) -> tuple[float, float]:
        """Seconds of the wall and of the process for purifying some images at once."""
        batch, _, indices = images.batch(start, stop, context.device)

        def purify() -> None:
            purified = batch
            with torch.no_grad():
                for method in methods:
                    purified = method.purify(purified, seed, indices)

        return _seconds(purify, context.device)

    started = time.perf_counter()
    taken(0, 1)
    alone = np.array([taken(place, place + 1) for place in range(1, count + 1)])
    per_image = {1: float(alone[:, 0].mean())}
    for size in timing.batches:
        left = timing.limit_seconds - (time.perf_counter() - started)
        if size > len(images) or size * list(per_image.values())[-1] > left:
            break
        try:
            per_image[size] = taken(0, size)[0] / size
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
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    wall, process = time.perf_counter(), time.process_time()
    work()
    synchronize()
    return time.perf_counter() - wall, time.process_time() - process
