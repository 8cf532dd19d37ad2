"""Labelled images for an audit: a data set of the suite, or a folder of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.data import data_root, subset_indices
from purifiers.core.errors import UserError
from purifiers.core.training_images import to_float


class Labelled(NamedTuple):
    """Images with labels.

    Attributes:
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        indices: the images' indices in their split, int64 (n,).
        classes: number of classes.
        note: how the images differ from the official ones; empty if they do not.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    classes: int
    note: str


def load_images(
    data: str, n: int | None = None, split: str = "test", seed: int = 0, **parameters: Any
) -> Labelled:
    """Read labelled images.

    Args:
        data: name of a data set of the suite, such as ``cifar10``, or a folder with
            ``train/<class>/`` and ``test/<class>/``.
        n: number of images, drawn at random without replacement; all by default.
        split: ``train`` or ``test``.
        seed: random seed of the draw. The draws of the tables have seed 0.
        parameters: of the data set, such as ``shape=(3, 64, 64)`` for a folder.

    Raises:
        UserError: unknown or missing data, or fewer images than ``n``.
    """
    name, root = data, data_root()
    if not registry.exists("dataset", data) and Path(data).is_dir():
        name, root = "image_folder", Path(data).resolve()
        parameters = {"path": ".", **parameters}
    registry.describe("dataset", name).check_parameters(parameters, "load_images")
    dataset = build(registry.load("dataset", name), **parameters)
    pixels, labels = dataset.load(split, root)
    if n is not None and not 1 <= n <= len(labels):
        raise UserError(
            f"load_images: n is {n}, but the {split} split of {data} has {len(labels)} images: "
            f"choose 1 to {len(labels)}"
        )
    indices = subset_indices(len(labels), n or len(labels), seed)
    return Labelled(
        images=to_float(pixels[indices]),
        labels=torch.from_numpy(labels[indices]),
        indices=torch.from_numpy(indices),
        classes=dataset.classes or int(labels.max()) + 1,
        note=dataset.source(root).note,
    )
