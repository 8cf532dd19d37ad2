"""Template of a dataset: copy this file to ``<your_name>.py`` and replace what it reads.

The file's name is the name in YAML, the class is its CamelCase, and nothing else has to be
registered. Raise ``VERSION`` whenever an image, a label or their order changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from purifiers.core.traits import DatasetTraits
from purifiers.datasets._base import Dataset, Source


class Template(Dataset):
    """Stripes: class k is bright in rows 2k and 2k + 1, under noise.

    A real dataset reads files below ``root``, and says in one line what is missing::

        path = root / "my_set" / f"{split}.npz"
        if not path.exists():
            raise UserError(f"{path} is missing; get it from <where>")
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    """

    traits = DatasetTraits(
        version=1,
        shape=(1, 8, 8),  # channels, height, width
        classes=4,
        train=64,
        test=32,
        # Only if these are not the images a paper means; it is printed beside every number.
        stand_in_note="drawn stripes, for trying things out",
    )

    def source(self, root: Path) -> Source:
        return Source("drawn", self.traits.stand_in_note)

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        count, seed = (64, 0) if split == "train" else (32, 1)
        labels = np.arange(count) % 4
        images = np.random.RandomState(seed).randint(0, 64, (count, *self.shape), dtype=np.uint8)
        rows = np.arange(self.shape[1]) // 2 == labels[:, np.newaxis]
        images += np.uint8(160) * rows[:, np.newaxis, :, np.newaxis].astype(np.uint8)
        return images, labels
