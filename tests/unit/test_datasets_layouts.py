"""Data sets in the layouts of Hugging Face's hub and library, Keras and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from purifiers.core.errors import UserError
from purifiers.datasets.cifar10 import Cifar10
from purifiers.datasets.cifar100 import Cifar100
from purifiers.datasets.fashion_mnist import FashionMnist
from purifiers.datasets.imagenette import Imagenette
from purifiers.datasets.mnist import Mnist
from purifiers.datasets.svhn import Svhn
from purifiers.datasets.tinyimagenet import Tinyimagenet

from .test_datasets import encoded, pixels, tiny_mnist


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURIFYBENCH_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def stored_images(number: int, side: int, grey: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, H, W[, 3]) and labels."""
    images = pixels(number, side, side) if grey else pixels(number, side, side, 3)
    return images, np.arange(number) % 10


def table_of(images: np.ndarray, labels: np.ndarray, names: tuple[str, str]) -> pyarrow.Table:
    structs = [{"bytes": encoded(image), "path": None} for image in images]
    return pyarrow.table({names[0]: structs, names[1]: labels})


def save_to_disk(folder: Path, table: pyarrow.Table, shards: int) -> None:
    """As ``datasets.Dataset.save_to_disk`` writes a split."""
    folder.mkdir(parents=True)
    step = -(-len(table) // shards)
    for shard in range(shards):
        path = folder / f"data-{shard:05}-of-{shards:05}.arrow"
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table.slice(shard * step, step), max_chunksize=2)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")


def write_layout(root: Path, name: str, layout: str, names: tuple[str, str], splits) -> None:
    """``splits``: train and test to images and labels."""
    for split, (images, labels) in splits.items():
        if layout == "disk":
            save_to_disk(root / name / split, table_of(images, labels, names), 2)
        elif layout == "npz":
            (root / name).mkdir(exist_ok=True)
            np.savez(root / name / f"{split}.npz", images=images, labels=labels[:, None])
        elif layout != "keras":
            folder = (
                root / name / {"hub": "data", "configuration": "plain_text", "flat": ""}[layout]
            )
            folder.mkdir(parents=True, exist_ok=True)
            table, middle = table_of(images, labels, names), len(labels) // 2
            for number, part in enumerate((table.slice(0, middle), table.slice(middle))):
                path = folder / f"{split}-{number:05}-of-00002.parquet"
                pyarrow.parquet.write_table(part, path)
    if layout == "keras":
        arrays = {f"x_{split}": images for split, (images, _) in splits.items()}
        arrays |= {f"y_{split}": labels for split, (_, labels) in splits.items()}
        np.savez(root / f"{name}.npz", **arrays)


@pytest.mark.parametrize("layout", ["hub", "configuration", "flat", "disk", "npz", "keras"])
@pytest.mark.parametrize(
    ("base", "name", "side", "names"),
    [
        (Cifar10, "cifar10", 32, ("img", "label")),
        (Cifar100, "cifar100", 32, ("image", "fine_label")),
        (Mnist, "mnist", 28, ("image", "labels")),
        (FashionMnist, "fashion_mnist", 28, ("image", "label")),
        (Svhn, "svhn", 32, ("image", "label")),
        (Tinyimagenet, "tiny_imagenet", 64, ("image", "label")),
        (Imagenette, "imagenette", 224, ("image", "label")),
    ],
)
def test_layouts_of_other_libraries(base, name, side, names, layout, tmp_path):
    grey = base.shape[0] == 1
    splits = {"train": stored_images(5, side, grey), "test": stored_images(4, side, grey)}
    write_layout(tmp_path, name, layout, names, splits)
    dataset = base()
    for split, (images, labels) in splits.items():
        loaded, loaded_labels = dataset.load(split, tmp_path)
        expected = images[:, None] if grey else images.transpose(0, 3, 1, 2)
        assert np.array_equal(loaded, expected) and np.array_equal(loaded_labels, labels)
    source = dataset.source(tmp_path)
    assert "5 training and 4 test images" in source.note and name in source.text


@pytest.mark.parametrize("base", [Mnist, FashionMnist])
def test_idx_columns_are_exact_if_they_have_the_official_checksums(base, tmp_path):
    dataset, arrays = tiny_mnist(tmp_path / "idx", base, compressed=False)
    type(dataset).traits = base.traits.replace(train=5, test=3)
    keys = {"train": "train", "test": "t10k"}
    splits = {
        split: (arrays[f"{key}-images-idx3-ubyte"], arrays[f"{key}-labels-idx1-ubyte"])
        for split, key in keys.items()
    }
    name = "mnist" if base is Mnist else "fashion_mnist"
    write_layout(tmp_path, name, "hub", ("image", "label"), splits)
    assert dataset.source(tmp_path).note == ""
    assert "with the checksums of the official files" in dataset.source(tmp_path).text
    images, labels = splits["test"]
    pyarrow.parquet.write_table(
        table_of(images[::-1], labels[::-1], ("image", "label")),
        tmp_path / name / "data" / "test-00000-of-00001.parquet",
    )
    for path in (tmp_path / name / "data").glob("test-*-of-00002.parquet"):
        path.unlink()
    assert "another order" in dataset.source(tmp_path).note


def test_a_validation_split_is_the_test_split_where_there_is_no_other(tmp_path):
    splits = {"train": stored_images(4, 64), "valid": stored_images(2, 64)}
    write_layout(tmp_path, "tiny_imagenet", "hub", ("image", "label"), splits)
    images, _ = Tinyimagenet().load("test", tmp_path)
    assert np.array_equal(images, splits["valid"][0].transpose(0, 3, 1, 2))


def test_incomplete_and_mixed_layouts_are_refused(tmp_path):
    splits = {"train": stored_images(4, 32), "test": stored_images(4, 32)}
    write_layout(tmp_path, "svhn", "hub", ("image", "label"), splits)
    path = tmp_path / "svhn/data/test-00001-of-00002.parquet"
    moved = path.rename(tmp_path / "kept.parquet")
    with pytest.raises(UserError, match=r"test-\*-of-00002.parquet: 1 of 2 files are there"):
        Svhn().load("train", tmp_path)
    moved.rename(path)
    write_layout(tmp_path, "svhn", "configuration", ("image", "label"), splits)
    with pytest.raises(UserError, match="svhn: data/, plain_text/ hold different configurations"):
        Svhn().load("train", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": pixels(2, 32, 32, 3)}, "has the arrays x_train, expected x_train and y_train"),
        (
            {"x_train": pixels(2, 32, 31, 3), "y_train": np.arange(2)},
            r"images are uint8 \(2, 32, 31, 3\), expected uint8 \(n, 32, 32, 3\)",
        ),
        (
            {"x_train": np.zeros((2, 32, 32, 3)), "y_train": np.arange(2)},
            r"images are float64 .*expected uint8",
        ),
        (
            {"x_train": np.array([b"x"], object), "y_train": np.arange(1)},
            "not a whole npz file .*allow_pickle",
        ),
    ],
)
def test_npz_files_that_are_no_images(arrays, message, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(UserError, match=message):
        Cifar10().load("train", tmp_path)


def test_damaged_files_of_other_libraries(tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"cifar10.npz: not a whole npz file"):
        Cifar10().load("train", tmp_path)
    folder = tmp_path / "cifar10" / "train"
    folder.mkdir(parents=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"no stream")
    with pytest.raises(UserError, match=r"arrow: expected an arrow file with the columns"):
        Cifar10().load("train", tmp_path)


@pytest.mark.parametrize(
    ("base", "name"),
    [(Cifar10, "cifar-10-batches-py"), (Cifar100, "cifar-100-python.tar.gz")],
)
def test_the_pickled_version_of_cifar_is_seen_and_not_read(base, name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError) as caught:
        base().load("train", tmp_path)
    for words in (name, "is pickled, and unpickling can run any code", "get the binary version"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value) and name in capsys.readouterr().err
