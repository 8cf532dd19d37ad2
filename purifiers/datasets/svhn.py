"""SVHN, cropped digits: house numbers, 32x32 colour (Netzer et al. 2011)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets import _checksum
from purifiers.datasets._base import Dataset, Source
from purifiers.datasets._download import Remote, obtain

# Sizes and SHA-256: tensorflow/datasets, url_checksums/svhn_cropped.txt.
REMOTES = {
    "train": Remote(
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        182_040_794,
        "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    "test": Remote(
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        64_275_384,
        "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
}


class Svhn(Dataset):
    """SVHN from ``train_32x32.mat`` and ``test_32x32.mat`` in ``svhn/`` or the data folder itself.

    torchvision stores them in the data folder. The files give the digit 0 the label 10; here it is
    0. Otherwise ``svhn/`` with parquet, arrow or npz files, where the digit 0 has the label 0.
    """

    traits = DatasetTraits(
        version=1,
        shape=(3, 32, 32),
        classes=10,
        train=73_257,
        test=26_032,
        reads=(
            Layout(files=("{split}_32x32.mat", "svhn/{split}_32x32.mat"), verified=True),
            Layout(columns="svhn"),
        ),
    )

    origin = "SVHN cropped digits, official .mat files"
    remotes: ClassVar[Mapping[str, Remote]] = REMOTES

    def source(self, root: Path) -> Source:
        files = self.found(root)
        if files is None or files.layout.verified:
            return Source(self.origin)
        return Source(f"{files.described}, without a checksum", self.subset_note(files))

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        files = self.found(root)
        if files is not None and not files.layout.verified:
            return self.read_columns(files, split)
        remote = self.remotes[split]
        path = root / remote.name
        if path.exists():
            _checksum.check(path, remote.checksum, path)
        else:
            places = f"{remote.name} in {root / 'svhn'} and {root}, parquet files in svhn/"
            path = obtain(remote, root / "svhn" / remote.name, places)
        return _parse(path)


def _parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Convert ``X`` (32, 32, 3, n) to (n, 3, 32, 32), ``y`` (n, 1) in 1..10 to labels (n,)."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel()
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path}: not a MATLAB 5 file with X and y ({error})") from error
    if images.ndim != 4:
        raise UserError(f"{path}: X has shape {images.shape}, expected (32, 32, 3, n)")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise UserError(f"{path}: y lies in {labels.min()}..{labels.max()}, expected 1..10")
    return images.transpose(3, 2, 0, 1), labels % 10
