"""Fit a method, on frozen classifiers if it uses any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Method
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.core.spec import ImagesSpec, PurifierSpec, Subset
from purifiers.stages._context import EXAMPLES, Context, Outcome
from purifiers.stages._fit import fit_and_save
from purifiers.stages._opening import new_method, open_classifier, open_data, open_images


def run(folder: RunFolder, spec: PurifierSpec, context: Context) -> Outcome:
    """Fit the method from scratch or from the last checkpoint, and write its weights."""
    data = open_data(context, spec.data)
    classifiers = [open_classifier(context, run_id) for run_id in spec.classifiers]
    torch.manual_seed(derive_seed(spec.seed, folder.stage))
    method = new_method(spec.method, next(iter(classifiers), None), data.shape, context)
    method.fit_on(classifiers, spec.train)

    def store_examples() -> None:
        method.stored_examples = [
            _examples(number, method, folder, spec, context) for number in range(len(classifiers))
        ]

    fit = method.traits.fit
    prepare = store_examples if fit and fit.stored_examples else None
    return fit_and_save(
        folder, spec, context, data, method, method.fit_loss, method.recipe, prepare
    )


def _examples(
    number: int, method: Method, folder: RunFolder, spec: PurifierSpec, context: Context
) -> npt.NDArray:
    """Adversarial training examples against one classifier, memory-mapped from a temporary file."""
    subset = Subset(split="train", n=spec.train, seed=0)
    clean = open_images(context, ImagesSpec(data=spec.data, subset=subset, run=None))

    def work(start: int, stop: int) -> npt.NDArray:
        images, labels, _ = clean.batch(start, stop, context.device)
        return method.example(number, images, labels, torch.arange(start, stop)).cpu().numpy()

    path = folder.path / EXAMPLES / f"{number}.npy"
    label = f"{folder.stage} {folder.id}, examples {number + 1}"
    shape = clean.images.shape[1:]
    fill(path, len(clean), shape, np.float32, work, context.batch_size, label)
    return np.load(path, mmap_mode="r")
