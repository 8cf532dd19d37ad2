"""Template of a dataset: copy this file to ``<your_name>.py`` and replace what it reads.

The file's name is the name in YAML, the class is its CamelCase, and nothing else has to be
registered. Raise ``VERSION`` whenever an image, a label or their order changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from purifiers.datasets._base import Dataset, Source

VERSION = 1
SHAPE = (1, 8, 8)  # channels, height, width
CLASSES = 4
TRAIN = 64
TEST = 32
# Only if these are not the images a paper means; it is printed beside every number.
STAND_IN_NOTE = "drawn stripes, for trying things out"


class Template(Dataset):
    """Stripes: class k is bright in rows 2k and 2k + 1, under noise.

    A real dataset reads files below ``root``, and says in one line what is missing::

        path = root / "my_set" / f"{split}.npz"
        if not path.exists():
            raise UserError(f"{path} is missing; get it from <where>")
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    """

    shape, classes, train, test = SHAPE, CLASSES, TRAIN, TEST

    def source(self, root: Path) -> Source:
        return Source("drawn", STAND_IN_NOTE)

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        count, seed = (TRAIN, 0) if split == "train" else (TEST, 1)
        labels = np.arange(count) % CLASSES
        images = np.random.RandomState(seed).randint(0, 64, (count, *SHAPE), dtype=np.uint8)
        rows = np.arange(SHAPE[1]) // 2 == labels[:, np.newaxis]
        images += np.uint8(160) * rows[:, np.newaxis, :, np.newaxis].astype(np.uint8)
        return images, labels
