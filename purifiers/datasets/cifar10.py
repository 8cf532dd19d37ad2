"""CIFAR-10: colour photographs of ten classes, 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits
from purifiers.datasets import _images
from purifiers.datasets._base import SPLITS, Source
from purifiers.datasets._cifar import CifarBinary
from purifiers.datasets._download import Remote

# Size and SHA-256: tensorflow/datasets, url_checksums/cifar10.txt.
ARCHIVE = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
MEMBERS = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
# MD5 of the unpacked files: prabhuomkar/pytorch-cpp (cmake/fetch_cifar10.cmake) and
# rai-project/dldataset (vision/cifar10.go), which agree.
CHECKSUMS = {
    "data_batch_1.bin": "md5:5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "md5:5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "md5:942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "md5:ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "md5:53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "md5:803d5f7f4d78ea53de84dbe85f74fb6d",
}
# Folders with train.parquet and test.parquet in the columns of Hugging Face's `cifar10`.
PARQUET_FOLDERS = ("cifar10_jpeg", "cifar10")


class Cifar10(CifarBinary):
    """CIFAR-10, read from the first of these locations that exists.

    1. ``cifar-10-batches-bin/``, the official binary version;
    2. ``cifar-10-binary.tar.gz``, the same as an archive;
    3. ``cifar10_jpeg/`` or ``cifar10/`` with ``train.parquet`` and ``test.parquet``: columns
       ``img`` {bytes, path} and ``label``, in the order of the file. Only the numbers of images and
       the range of the labels can be checked;
    4. the archive, downloaded.
    """

    traits = DatasetTraits(
        version=1,
        shape=(3, 32, 32),
        classes=10,
        train=50_000,
        test=10_000,
        stand_in_note="recompressed as JPEG, not bit-exact",  # only if the files contain JPEG
    )

    folder, archive, members, checksums = "cifar-10-batches-bin", ARCHIVE, MEMBERS, CHECKSUMS
    label_bytes = 1

    def source(self, root: Path) -> Source:
        folder = self._parquet_folder(root)
        if folder is None:
            return super().source(root)
        blobs = [blob for split in SPLITS for blob in _rows(folder, split)[0]]
        note = self.traits.stand_in_note if any(_images.is_jpeg(blob) for blob in blobs) else ""
        return Source(f"parquet files in {folder.name}/, without a checksum", note)

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        folder = self._parquet_folder(root)
        if folder is None:
            return super().read(split, root)
        blobs, labels = _rows(folder, split)
        images = np.empty((len(blobs), *self.shape), np.uint8)
        for index, blob in enumerate(blobs):
            where = f"{folder / split}.parquet, row {index}"
            images[index] = _images.decode(blob, self.shape, where)
        return images, labels

    def looked_for(self, root: Path) -> str:
        folders = ", ".join(f"{name}/" for name in (self.folder, *PARQUET_FOLDERS))
        return f"{folders} and {self.archive.name} in {root}"

    def _parquet_folder(self, root: Path) -> Path | None:
        if (root / self.folder).is_dir() or (root / self.archive.name).exists():
            return None
        folders = (root / name for name in PARQUET_FOLDERS)
        return next((folder for folder in folders if folder.is_dir()), None)


def _rows(folder: Path, split: str) -> tuple[list[bytes], np.ndarray]:
    """Encoded images and labels (n,) of one parquet file."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    path = folder / f"{split}.parquet"
    try:
        table = pyarrow.parquet.read_table(path, columns=["img", "label"])
        images = pyarrow.compute.struct_field(table["img"], "bytes").to_pylist()
        labels = table["label"].to_numpy()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: expected a parquet file with the columns img {{bytes, path}} and label "
            f"({reason}); repair it or move {folder.name}/ away"
        ) from error
    if any(image is None for image in images):
        raise UserError(f"{path}: an image without bytes; store the bytes, not only the path")
    return images, labels
