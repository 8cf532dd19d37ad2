"""Trace images through a purification: their embeddings' distances, and the states of one image."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.component import Method
from purifiers.core.evaluation import defender_seed, finite_logits, purified
from purifiers.core.heads import split
from purifiers.core.shards import fill
from purifiers.core.spec import TraceSpec
from purifiers.stages._context import SCORES, STATES, Context, Outcome, save_rows
from purifiers.stages._opening import ImageSet, open_classifier, open_images, open_method

DRAWS = 10
"""Random draws of the traced image; ADP combines 10 runs (Yoon et al. 2021)."""


def run(folder: RunFolder, spec: TraceSpec, context: Context) -> Outcome:
    """Write ``scores.parquet`` and ``states.npz``.

    - ``scores.parquet``, one row per image: index, label, and the L2 distances ``attacked`` and
      ``purified`` between the embedding of the clean image and that of the attacked image, before
      and after the purification (draw 0).
    - ``states.npz``, of the first image: ``pixels`` (draws, states, C H W), ``embeddings`` (draws,
      states, width) and ``correct`` (draws, states), from the attacked image to the purified one.
      A deterministic method has a single draw.

    Raises:
        RuntimeError: the logits are not finite.
        UserError: the classifier does not end with a linear layer.
    """
    images = open_images(context, spec.images)
    classifier = open_classifier(context, spec.classifier)
    method = open_method(context, spec.method, classifier)
    encoder, _ = split(classifier, tuple(images.clean.shape[1:]))
    path = folder.path / "distances.npy"

    def work(start: int, stop: int) -> npt.NDArray:
        batch, _, indices = images.batch(start, stop, context.device)
        clean = images.clean_batch(start, stop).to(context.device)
        after = purified(method, batch, spec.seed, indices)
        with torch.no_grad():
            origin = encoder(clean)
            distances = [(encoder(seen) - origin).norm(dim=1) for seen in (batch, after)]
        return torch.stack(distances, dim=1).cpu().numpy()

    label = f"trace {folder.id}"
    halved = fill(path, len(images), (2,), np.float32, work, context.batch_size, label)
    attacked, restored = np.load(path).T
    content = io.BytesIO()
    np.savez_compressed(content, **_states(images, classifier, encoder, method, spec, context))
    write_bytes(folder.path / STATES, content.getvalue())
    table = {"index": images.indices, "label": images.labels}
    save_rows(pa.table(table | {"attacked": attacked, "purified": restored}), folder)
    path.unlink()
    return Outcome([SCORES, STATES], {"n": len(attacked), **halved})


def _states(
    images: ImageSet,
    classifier: nn.Module,
    encoder: Callable[[Tensor], Tensor],
    method: Method,
    spec: TraceSpec,
    context: Context,
) -> dict[str, Any]:
    """The content of ``states.npz``."""
    image, labels, indices = images.batch(0, 1, context.device)
    pixels, embeddings, correct = [], [], []
    for draw in range(DRAWS if method.random else 1):
        seed = defender_seed(spec.seed, draw)
        with torch.no_grad():
            states = torch.cat([image, *method.states(image, seed, indices)])
            embeddings.append(encoder(states).cpu().numpy())
        correct.append((finite_logits(classifier, states).argmax(1) == labels).cpu().numpy())
        pixels.append(states.flatten(1).cpu().numpy())
    return {
        "pixels": np.stack(pixels),
        "embeddings": np.stack(embeddings),
        "correct": np.stack(correct),
    }
