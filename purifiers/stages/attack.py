"""Generate an adversarial set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.defence import Defence
from purifiers.core.evaluation import attacked, attacked_defence, unprepared
from purifiers.core.probe import PROBED_IMAGES, probe
from purifiers.core.shards import fill
from purifiers.core.spec import AttackSpec, Eot
from purifiers.stages._context import IMAGES, Context, Outcome
from purifiers.stages._opening import (
    ImageSet,
    new_component,
    open_classifier,
    open_images,
    open_method,
)


def run(folder: RunFolder, spec: AttackSpec, context: Context) -> Outcome:
    """Write adversarial images of every image of a set, batch by batch.

    The attacked model is the classifier, with or without purifiers; attacks without a model, such
    as corruptions, have none.
    """
    images = open_images(context, spec.images)
    defence = _defence(spec, spec.classifier, context) if spec.classifier else None
    attack = new_component("attack", spec.attack)

    def work(start: int, stop: int) -> npt.NDArray:
        batch, labels, indices = images.batch(start, stop, context.device)
        return attacked(attack, defence, batch, labels, spec.seed, indices).cpu().numpy()

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
    summary: dict[str, Any] = {"n": len(images), **halved}
    if attack.traits.batch_dependent:
        summary["batch_size"] = context.batch_size
    if attack.step_path:
        summary["step"] = attack.step_path
    if attack.flags:
        summary["flags"] = list(attack.flags)
    if reason := unprepared(defence):
        summary["unprepared"] = reason
    if defence is not None:  # without a model there is no gradient and no loss
        summary["probe"] = probe(defence, *_probed(folder, images, context))
    return Outcome([IMAGES], summary)


def _defence(spec: AttackSpec, classifier_run: str, context: Context) -> Defence:
    """The defence with the gradient and the draws that the threat model allows the attacker."""
    classifier = open_classifier(context, classifier_run, spec.classifier_stage)
    eot = spec.eot or Eot(samples=1, combine="mean")
    return attacked_defence(
        classifier,
        [open_method(context, method, classifier) for method in spec.methods],
        spec.seed,
        gradient=spec.gradient,
        eot_samples=eot.samples,
        eot_combine=eot.combine,
        auxiliary=open_method(context, spec.auxiliary, classifier) if spec.auxiliary else None,
        precision=spec.precision,
    )


def _probed(
    folder: RunFolder, images: ImageSet, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first images of the set: clean, adversarial, labels and indices."""
    stop = min(PROBED_IMAGES, len(images))
    clean, labels, indices = images.batch(0, stop, context.device)
    adversarial = np.load(folder.path / IMAGES, mmap_mode="r")[:stop]
    return clean, torch.from_numpy(adversarial.copy()).to(context.device), labels, indices
