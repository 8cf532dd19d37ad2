"""MNIST: handwritten digits, 28x28 grey (LeCun, Bottou, Bengio and Haffner 1998)."""

from __future__ import annotations

from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets._download import Remote
from purifiers.datasets._idx import IdxDataset

# SHA-256 of the uncompressed files.
CHECKSUMS = {
    "train-images-idx3-ubyte": "sha256:"
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "sha256:"
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "sha256:"
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "sha256:"
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

# URL, sizes and checksums from tensorflow/datasets (url_checksums/mnist.txt): a copy, because the
# original page no longer serves the files to everybody.
_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
REMOTES = {
    "train-images-idx3-ubyte": Remote(
        f"{_URL}train-images-idx3-ubyte.gz",
        9_912_422,
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte": Remote(
        f"{_URL}train-labels-idx1-ubyte.gz",
        28_881,
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte": Remote(
        f"{_URL}t10k-images-idx3-ubyte.gz",
        1_648_877,
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte": Remote(
        f"{_URL}t10k-labels-idx1-ubyte.gz",
        4_542,
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}


class Mnist(IdxDataset):
    """MNIST below ``MNIST/raw/`` (torchvision's folders), compressed or not.

    Otherwise ``mnist/`` with parquet, arrow or npz files, or ``mnist.npz``.
    """

    traits = DatasetTraits(
        version=1,
        shape=(1, 28, 28),
        classes=10,
        train=60_000,
        test=10_000,
        reads=(
            Layout(files=("MNIST/raw/*-idx?-ubyte", "MNIST/raw/*-idx?-ubyte.gz"), verified=True),
            Layout(columns="mnist"),
        ),
    )

    folder, remotes, checksums = "MNIST", REMOTES, CHECKSUMS
    origin = "MNIST, idx files, byte-identical to the original"
