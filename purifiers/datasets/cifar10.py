"""CIFAR-10: colour photographs of ten classes, 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from purifiers.core.traits import DatasetTraits, Layout
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


class Cifar10(CifarBinary):
    """CIFAR-10, read from the first of these locations that exists.

    1. ``cifar-10-batches-bin/``, the official binary version;
    2. ``cifar-10-binary.tar.gz``, the same as an archive;
    3. ``cifar10/`` or ``cifar10_jpeg/`` with parquet, arrow or npz files in one of the layouts of
       :mod:`purifiers.core.data_layouts`;
    4. the archive, downloaded.

    Images of a parquet file are exact if, written in the official binary format, they have the
    official MD5. Otherwise every table states how they differ.
    """

    traits = DatasetTraits(
        version=2,
        shape=(3, 32, 32),
        classes=10,
        train=50_000,
        test=10_000,
        stand_in_note="recompressed as JPEG, not bit-exact",  # only if the files contain JPEG
        reads=(
            Layout(files=("cifar-10-batches-bin/*.bin",), verified=True),
            Layout(files=("cifar-10-binary.tar.gz",), verified=True),
            Layout(columns="cifar10"),
            Layout(columns="cifar10_jpeg"),
        ),
        # Lossless WebP in parquet files: written as binary files, they have the official MD5.
        official=(
            "2a1d111f43fc6457442a44d962afeb5383ab919371a6fac344cf9478aa674b05",  # train.parquet
            "2aa39aa9a32f275a72c0e7bf291cdd4a50049985c3441f478bee881bdbdb1524",  # test.parquet
        ),
    )

    folder, archive, members, checksums = "cifar-10-batches-bin", ARCHIVE, MEMBERS, CHECKSUMS
    label_bytes = 1
    pickled = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
