"""CIFAR-100 with its fine labels: colour photographs, 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets._cifar import CifarBinary
from purifiers.datasets._download import Remote

# Size and SHA-256: tensorflow/datasets, url_checksums/cifar100.txt.
ARCHIVE = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    168_513_733,
    "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
MEMBERS = {"train": ("train.bin",), "test": ("test.bin",)}
# MD5 of the unpacked files: rai-project/dldataset (vision/cifar100.go).
CHECKSUMS = {
    "train.bin": "md5:6172c7755cfe09b2fe270c85cebc1b15",
    "test.bin": "md5:4499cfba6c016c1be1438163640a0898",
}


class Cifar100(CifarBinary):
    """CIFAR-100, read from the first of these locations that exists.

    1. ``cifar-100-binary/``, the official binary version;
    2. ``cifar-100-binary.tar.gz``, the same as an archive;
    3. ``cifar100/`` with parquet, arrow or npz files in one of the layouts of
       :mod:`purifiers.core.data_layouts`, with fine labels, all images or a subset;
    4. the archive, downloaded.

    A record has a coarse and a fine label; the fine one is used. Images of parquet files are exact
    if they have coarse labels and, written in the official binary format, the official MD5.
    Otherwise every table states how they differ.
    """

    traits = DatasetTraits(
        version=2,
        shape=(3, 32, 32),
        classes=100,
        train=50_000,
        test=10_000,
        reads=(
            Layout(files=("cifar-100-binary/*.bin",), verified=True),
            Layout(files=("cifar-100-binary.tar.gz",), verified=True),
            Layout(columns="cifar100"),
        ),
    )

    folder, archive, members, checksums = "cifar-100-binary", ARCHIVE, MEMBERS, CHECKSUMS
    label_bytes = 2
    pickled = ("cifar-100-python", "cifar-100-python.tar.gz")
