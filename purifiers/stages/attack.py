"""Make an adversarial set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build
from purifiers.core.defence import Defence
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.stages._context import (
    IMAGES,
    Context,
    Outcome,
    open_classifier,
    open_images,
    open_method,
)


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Attack the bare classifier, or the classifier behind purifiers, batch by batch.

    The attacker's noise differs from the defender's: it does not know the defence's coins.
    """
    images = open_images(context, spec["images"])
    classifier = open_classifier(context, spec["classifier"])
    methods = [open_method(context, method, classifier) for method in spec["methods"]]
    defence = Defence(classifier, methods, spec["gradient"], derive_seed(spec["seed"], "attacker"))
    attack = build(
        registry.load("attack", spec["attack"]["component"]), **spec["attack"]["parameters"]
    )
    seed = derive_seed(spec["seed"], "attack")

    def work(start: int, stop: int) -> npt.NDArray:
        batch, labels, indices = images.batch(start, stop, context.device)
        return attack(defence, batch, labels, seed, indices).cpu().numpy()

    shape = images.images.shape[1:]
    fill(
        folder.path / IMAGES,
        len(images),
        shape,
        np.float32,
        work,
        context.batch_size,
        f"attack {folder.id}",
    )
    return Outcome([IMAGES], {"n": len(images)})
