"""Template of a data set; replace this line by: name, kind and size of images, authors, year.

Copy this file to ``<name>.py`` and rename the class to the CamelCase of ``<name>``, the name in
YAML. No list has to be edited. The first line of the module docstring is the data set's summary (15
to 120 characters).

The contract tests require of every data set:

- literal traits that match the arrays: images uint8 (n, C, H, W), labels in 0 ... classes - 1;
- the same images in the same order at every call;
- a ``source``, and an error with "did you mean" for an unknown split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from purifiers.core.traits import DatasetTraits
from purifiers.datasets._base import Dataset, Source


class Template(Dataset):
    """Stripes: class k is bright in rows 2k and 2k + 1, under noise.

    A real data set reads files below ``root`` and reports a missing one in one line::

        path = root / "my_set" / f"{split}.npz"
        if not path.exists():
            raise UserError(f"{path} is missing; get it from <where>")
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    """

    traits = DatasetTraits(
        version=1,  # raise it whenever an image, a label or their order changes
        shape=(1, 8, 8),  # channels, height, width
        classes=4,  # number of classes
        train=64,  # number of training images
        test=32,  # number of test images
        # only if these images differ from those of the papers; printed under every table
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
