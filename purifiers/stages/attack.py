"""Make an adversarial set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build
from purifiers.core.defence import Defence
from purifiers.core.noise import derive_seed
from purifiers.core.prepare import Prepared
from purifiers.core.shards import fill
from purifiers.stages._context import (
    IMAGES,
    Context,
    ImageSet,
    Outcome,
    open_classifier,
    open_images,
    open_method,
)
from purifiers.stages._probe import PROBED, probe


def run(folder: RunFolder, spec: dict[str, Any], context: Context) -> Outcome:
    """Attack the bare classifier, the classifier behind purifiers, or nobody, batch by batch.

    The attacker's noise differs from the defender's: it does not know the defence's coins.
    """
    images = open_images(context, spec["images"])
    defence = _defence(spec, context) if spec["classifier"] else None
    attack = build(
        registry.load("attack", spec["attack"]["component"]), **spec["attack"]["parameters"]
    )
    seed = derive_seed(spec["seed"], "attack")

    def work(start: int, stop: int) -> npt.NDArray:
        batch, labels, indices = images.batch(start, stop, context.device)
        return attack(defence or _nobody, batch, labels, seed, indices).cpu().numpy()

    shape = images.images.shape[1:]
    halved = fill(
        folder.path / IMAGES,
        len(images),
        shape,
        np.float32,
        work,
        context.batch_size,
        f"attack {folder.id}",
    )
    told: dict[str, Any] = {"n": len(images), **halved}
    if attack.traits.batch_dependent:
        told["batch_size"] = context.batch_size
    if defence is not None:  # else no gradient, no loss to look at
        told["probe"] = probe(defence, *_probed(folder, images, context))
    return Outcome([IMAGES], told)


def _defence(spec: dict[str, Any], context: Context) -> Defence:
    """What the attacker sees, with the gradient and the draws that the threat model gives."""
    classifier = open_classifier(
        context, spec["classifier"], spec.get("classifier_stage", "classifier")
    )
    methods = [open_method(context, method, classifier) for method in spec["methods"]]
    auxiliary = spec.get("auxiliary")
    draws = spec.get("eot", {"samples": 1, "combine": "mean"})
    return Defence(
        Prepared(classifier, spec.get("precision", "float32")),
        methods,
        spec["gradient"],
        derive_seed(spec["seed"], "attacker"),
        draws["samples"],
        draws["combine"],
        open_method(context, auxiliary, classifier) if auxiliary else None,
    )


def _nobody(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("an attack that declares model_free=True queried a model")


def _probed(
    folder: RunFolder, images: ImageSet, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first images of the set: clean, adversarial, labels and indices."""
    stop = min(PROBED, len(images))
    clean, labels, indices = images.batch(0, stop, context.device)
    made = np.load(folder.path / IMAGES, mmap_mode="r")[:stop]
    return clean, torch.from_numpy(made.copy()).to(context.device), labels, indices
