"""Fashion-MNIST: articles of clothing, 28x28 grey (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets._download import Remote
from purifiers.datasets._idx import IdxDataset

# SHA-256 of the uncompressed files. Labels: from zalandoresearch/fashion-mnist's own files.
# Images: from several public repositories, which record the same checksums of the labels.
CHECKSUMS = {
    "train-images-idx3-ubyte": "sha256:"
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "sha256:"
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "sha256:"
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "sha256:"
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# URLs, sizes and checksums: tensorflow/datasets, url_checksums/fashion_mnist.txt.
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
REMOTES = {
    "train-images-idx3-ubyte": Remote(
        f"{_URL}train-images-idx3-ubyte.gz",
        26_421_880,
        "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels-idx1-ubyte": Remote(
        f"{_URL}train-labels-idx1-ubyte.gz",
        29_515,
        "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images-idx3-ubyte": Remote(
        f"{_URL}t10k-images-idx3-ubyte.gz",
        4_422_102,
        "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels-idx1-ubyte": Remote(
        f"{_URL}t10k-labels-idx1-ubyte.gz",
        5_148,
        "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}


class FashionMnist(IdxDataset):
    """Fashion-MNIST below ``FashionMNIST/raw/`` (torchvision's folders), compressed or not.

    Otherwise ``fashion_mnist/`` with parquet, arrow or npz files, or ``fashion_mnist.npz``.
    """

    traits = DatasetTraits(
        version=1,
        shape=(1, 28, 28),
        classes=10,
        train=60_000,
        test=10_000,
        reads=(
            Layout(
                files=("FashionMNIST/raw/*-idx?-ubyte", "FashionMNIST/raw/*-idx?-ubyte.gz"),
                verified=True,
            ),
            Layout(columns="fashion_mnist"),
        ),
    )

    folder, remotes, checksums = "FashionMNIST", REMOTES, CHECKSUMS
    origin = "Fashion-MNIST, idx files, byte-identical to the original"
