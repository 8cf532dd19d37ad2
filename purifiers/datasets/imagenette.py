"""Imagenette: ten easily distinguished classes of ImageNet (Howard 2019, `fastai/imagenette`)."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.core.ranges import Count
from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets import _images
from purifiers.datasets._base import Dataset, Source
from purifiers.datasets._download import Remote, obtain

# Size and SHA-256: tensorflow/datasets, url_checksums/imagenette.txt.
ARCHIVE = Remote(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
    341_553_947,
    "sha256:5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
)
FOLDER = "imagenette2-320"
FOLDERS = {"train": "train", "test": "val"}


class Imagenette(Dataset):
    """Imagenette v2, read in place from the first of these locations that exists.

    1. ``imagenette2-320.tgz``, the official images with a shorter side of 320 pixels;
    2. ``imagenette/`` with parquet, arrow or npz files in one of the layouts of
       :mod:`purifiers.core.data_layouts`, all images or a subset;
    3. the archive, downloaded.

    Classes are numbered in the order of their WordNet ids; the test split is the validation set.
    Each image is resized (bilinear, filtered) to cover the shape, and its centre is cropped.

    Args:
        shape: (3, H, W) of the result; 224x224 is ImageNet's usual size.

    Raises:
        UserError: a shape with other channels.
    """

    traits = DatasetTraits(
        version=1,
        shape=(3, 224, 224),
        classes=10,
        train=9_469,
        test=3_925,
        reads=(
            Layout(files=("imagenette2-320.tgz",), verified=True),
            Layout(columns="imagenette"),
        ),
    )

    archive: ClassVar[Remote] = ARCHIVE

    def __init__(self, shape: Sequence[Count] = (3, 224, 224)) -> None:
        if len(shape) != 3 or shape[0] != 3:
            raise UserError(f"imagenette: shape is {tuple(shape)}: choose (3, height, width)")
        self.shape = (3, shape[1], shape[2])

    def source(self, root: Path) -> Source:
        files = self.found(root)
        if files is None or files.layout.verified:
            return Source(f"official images, {self.archive.name}; test is the validation set")
        return Source(f"{files.described}, without a checksum", self.subset_note(files))

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        files = self.found(root)
        if files is None or files.layout.verified:
            return self._read_archive(split, root)
        return self.read_columns(files, split, fit=True)

    def _read_archive(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        places = f"imagenette/ and {self.archive.name} in {root}"
        path = obtain(self.archive, root / self.archive.name, places)
        pixels: dict[str, np.ndarray] = {}
        prefix = f"{FOLDER}/{FOLDERS[split]}/"
        try:
            with tarfile.open(path, "r|gz") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name.endswith(".JPEG") else None
                    if file is not None and member.name.startswith(prefix):
                        where = f"{path}: {member.name}"
                        pixels[member.name] = _images.decode(
                            file.read(), self.shape, where, fit=True
                        )
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: not a whole tar.gz archive ({error}); move it away") from None
        names = sorted(pixels)
        classes = sorted({name.split("/")[2] for name in names})
        labels = np.array([classes.index(name.split("/")[2]) for name in names], np.int64)
        return np.stack([pixels[name] for name in names]), labels
