"""Imagenette: ten easily told classes of ImageNet (Howard 2019, `fastai/imagenette`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits
from purifiers.datasets import _parquet
from purifiers.datasets._base import SPLITS, Dataset, Source

OFFICIAL = {"train": 9_469, "test": 3_925}
"""Numbers of images of Imagenette v2, from its README; test is its validation set."""


class Imagenette(Dataset):
    """Imagenette from ``imagenette/`` with ``train.parquet`` and ``test.parquet``.

    The columns are ``img`` or ``image`` {bytes, path} and ``label``, numbered in the order of the
    WordNet ids. Each image is resized (bilinear, filtered) to cover the shape, and its centre is
    cropped. The numbers of images are those of the files.

    Args:
        shape: (3, H, W) of the result; 224x224 is ImageNet's usual size.
    """

    traits = DatasetTraits(version=1, shape=(3, 224, 224), classes=10, train=None, test=None)

    def __init__(self, shape: Sequence[int] = (3, 224, 224)) -> None:
        if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
            raise UserError(f"imagenette: shape is {tuple(shape)}: choose (3, height, width)")
        self.shape = (3, shape[1], shape[2])

    def source(self, root: Path) -> Source:
        folder = self._folder(root)
        counts = {split: len(self._table(folder, split).images) for split in SPLITS}
        note = ""
        if counts != OFFICIAL:
            note = f"a subset of {counts['train']} training and {counts['test']} test images"
        return Source(f"parquet files in {folder.name}/, without a checksum", note)

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        folder = self._folder(root)
        table = self._table(folder, split)
        pixels = table.decoded(self.shape, str(folder / f"{split}.parquet"), fit=True)
        return pixels, table.labels["label"]

    def _folder(self, root: Path) -> Path:
        folder = _parquet.find_folder(root, ("imagenette", "imagenette*"))
        if folder is None:
            raise UserError(
                f"imagenette is missing: looked for imagenette/train.parquet in {root}; set "
                "PURIFYBENCH_DATA, or store the images as parquet with the columns image and label"
            )
        return folder

    @staticmethod
    def _table(folder: Path, split: str) -> _parquet.Table:
        return _parquet.read(folder / f"{split}.parquet", ("label",))
