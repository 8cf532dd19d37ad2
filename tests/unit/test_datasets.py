"""Every dataset, from tiny files in its official layout, and the real ones where they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from purifiers.core import registry
from purifiers.core.data import data_root
from purifiers.core.errors import UserError
from purifiers.datasets._base import Dataset
from purifiers.datasets._checksum import check, matches
from purifiers.datasets._download import Remote
from purifiers.datasets._idx import parse
from purifiers.datasets._template import Template
from purifiers.datasets.cifar10 import Cifar10
from purifiers.datasets.cifar100 import Cifar100
from purifiers.datasets.digits import Digits, _bilinear
from purifiers.datasets.fashion_mnist import FashionMnist
from purifiers.datasets.image_folder import ImageFolder
from purifiers.datasets.imagenette import Imagenette
from purifiers.datasets.mnist import Mnist
from purifiers.datasets.svhn import Svhn
from purifiers.datasets.tinyimagenet import Tinyimagenet

RANDOM = np.random.RandomState(7)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not found must fail at once, never reach a real server."""
    monkeypatch.setenv("PURIFYBENCH_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """HWC or HW pixels as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


# --- the base -----------------------------------------------------------------------------------


def test_data_root_is_the_variable_or_data_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("PURIFYBENCH_DATA")
    monkeypatch.chdir(tmp_path)
    assert data_root() == tmp_path / "data"


class Wrong(Template):
    """A template that reads whatever the test says."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.answer = images, labels

    def read(self, split, root):
        return self.answer


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((64, 1, 8, 8)), np.zeros(64, int), "uint8"),
        (np.zeros((64, 1, 8, 9), np.uint8), np.zeros(64, int), r"\(1, 8, 9\)"),
        (np.zeros((63, 1, 8, 8), np.uint8), np.zeros(63, int), "expected 64"),
        (np.zeros((64, 1, 8, 8), np.uint8), np.zeros(63, int), "63 labels"),
        (np.zeros((64, 1, 8, 8), np.uint8), np.full(64, 4), r"labels lie in 4\.\.4"),
        (np.zeros((64, 1, 8, 8), np.uint8), np.full(64, -1), "labels lie in -1"),
        (np.zeros((64, 1, 8, 8), np.uint8), np.zeros(64), "expected integers"),
    ],
)
def test_load_refuses_what_a_dataset_must_not_return(images, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Wrong(images, labels).load("train", tmp_path)


def test_an_unknown_split_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="did you mean 'train'"):
        Template().load("trian", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("dataset", [Template(), Digits()])
def test_datasets_without_files(dataset: Dataset, split: str, tmp_path):
    images, labels = dataset.load(split, tmp_path)
    again, same = dataset.load(split, tmp_path)
    assert images.dtype == np.uint8 and images.flags.c_contiguous and labels.dtype == np.int64
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    assert set(labels) == set(range(dataset.classes or 0))
    assert dataset.source(tmp_path).note
    assert not list(tmp_path.iterdir())


def test_every_file_states_what_planning_reads():
    folder = Path(__file__).parents[2] / "purifiers" / "datasets"
    files = [*folder.glob("[!_]*.py"), folder / "_template.py"]
    assert len(files) >= 8
    for path in files:
        traits = registry.describe_file("dataset", path.stem, path).traits
        assert len(traits.shape) == 3 and traits.version >= 1, path.name


def test_checksums_name_their_algorithm(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert matches(b"abc", sha256(b"abc")) and matches(path, sha256(b"abc"))
    assert matches(path, "md5:900150983cd24fb0d6963f7d28e17f72")
    with pytest.raises(UserError, match="damaged or not the official file"):
        check(path, sha256(b"abd"), path)
    assert path.read_bytes() == b"abc"


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_stretched_and_split_once(tmp_path):
    train, train_labels = Digits().load("train", tmp_path)
    test, test_labels = Digits().load("test", tmp_path)
    assert train.shape == (1400, 1, 16, 16) and test.shape == (397, 1, 16, 16)
    assert train.min() == 0 and train.max() == 255
    # The stretch is monotone and odd around 1/2, so extremes outnumber the middle.
    assert np.mean((train < 26) | (train > 229)) > 0.6
    assert np.array_equal(
        np.bincount(train_labels) + np.bincount(test_labels), np.bincount(load_digits().target)
    )
    together = {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert not together


def test_digits_never_change(tmp_path):
    """Golden: a change here needs a new version."""
    digests = []
    for split in ("train", "test"):
        images, labels = Digits().load(split, tmp_path)
        digests.append(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16])
    assert digests == ["b86cf8913a4ac3aa", "c0d31cc900802692"]


def test_digits_are_enlarged_like_pillow_does(tmp_path):
    """Against an independent bilinear enlargement, before the stretch."""
    image = load_digits().images[0]
    ours = _bilinear(8, 16) @ image @ _bilinear(8, 16).T
    theirs = Image.fromarray(image.astype(np.float32)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.allclose(ours, np.asarray(theirs), atol=1e-4)


# --- MNIST --------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.tobytes()


def tiny_mnist(root: Path, base: type, compressed: bool) -> tuple[Dataset, dict[str, np.ndarray]]:
    """Official layout with 5 and 3 images, and a dataset that expects exactly these files."""
    arrays = {
        "train-images-idx3-ubyte": pixels(5, 28, 28),
        "train-labels-idx1-ubyte": np.array([5, 0, 4, 1, 9], np.uint8),
        "t10k-images-idx3-ubyte": pixels(3, 28, 28),
        "t10k-labels-idx1-ubyte": np.array([7, 2, 1], np.uint8),
    }
    raw = root / base.folder / "raw"
    raw.mkdir(parents=True)
    for name, array in arrays.items():
        data = idx(array)
        (raw / (f"{name}.gz" if compressed else name)).write_bytes(
            gzip.compress(data) if compressed else data
        )

    class Tiny(base):
        train, test = 5, 3
        checksums = {name: sha256(idx(array)) for name, array in arrays.items()}  # noqa: RUF012

    return Tiny(), arrays


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("base", [Mnist, FashionMnist])
def test_idx_datasets_read_torchvisions_folders(base, compressed, tmp_path):
    dataset, arrays = tiny_mnist(tmp_path, base, compressed)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = dataset.load(split, tmp_path)
        assert np.array_equal(images[:, 0], arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(labels, arrays[f"{prefix}-labels-idx1-ubyte"])
    assert dataset.source(tmp_path).note == ""


def test_mnist_refuses_another_content(tmp_path):
    dataset, _ = tiny_mnist(tmp_path, Mnist, compressed=True)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.array([7, 2, 2], np.uint8))))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is damaged or not"):
        dataset.load("test", tmp_path)
    assert path.exists()
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is damaged"):
        Mnist().load("train", tmp_path)  # the official checksums refuse the tiny files


def test_mnist_refuses_half_a_gzip_file(tmp_path):
    dataset, _ = tiny_mnist(tmp_path, Mnist, compressed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole gzip file"):
        dataset.load("train", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(np.zeros((2, 3), np.uint8)), "not an idx file of bytes with 3 dimensions"),
        (b"\x00\x00\x0d\x03" + idx(np.zeros((1, 2, 2), np.uint8))[4:], "0x00000d03"),
        (
            idx(np.zeros((2, 3, 3), np.uint8))[:-1],
            r"17 values, but its header declares \(2, 3, 3\)",
        ),
        (idx(np.zeros((2, 3, 3), np.uint8)) + b"x", "19 values"),
        (b"\x00\x00\x08\x03\x00", "not an idx file"),
    ],
)
def test_idx_refuses_other_magic_numbers_and_sizes(data, message):
    with pytest.raises(UserError, match=message):
        parse(data, 3, Path("f"))


def test_missing_mnist_says_where_and_how_in_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        Mnist().load("test", tmp_path)
    message = str(caught.value)
    assert "t10k-images-idx3-ubyte.gz is missing" in message and "\n" not in message
    assert str(tmp_path / "MNIST" / "raw") in message and "http://127.0.0.1:9/" in message
    assert "set PURIFYBENCH_DATA or put the file at" in message


# --- CIFAR --------------------------------------------------------------------------------------


def records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    columns = [label.astype(np.uint8)[:, None] for label in labels]
    return np.hstack([*columns, images.reshape(len(images), -1)]).tobytes()


def tar(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in {**files, "../../evil.bin": b"outside"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Cifar:
    """Two images per file, in the official layout of either set."""

    def __init__(self, base: type[Cifar10] | type[Cifar100]) -> None:
        names = [name for split in ("train", "test") for name in base.members[split]]
        self.images = {name: pixels(2, 3, 32, 32) for name in names}
        self.labels = {name: np.array([i, base.classes - 1 - i]) for i, name in enumerate(names)}
        coarse = [np.array([19, 3])] * (base.label_bytes - 1)
        self.files = {n: records(self.images[n], *coarse, self.labels[n]) for n in names}
        self.archive = tar(base.folder, self.files)

        class Tiny(base):
            train, test = 2 * len(base.members["train"]), 2
            archive = Remote(base.archive.url, len(self.archive), sha256(self.archive))
            checksums = {n: sha256(data) for n, data in self.files.items()}  # noqa: RUF012

        self.dataset = Tiny()

    def write_folder(self, root: Path) -> None:
        folder = root / self.dataset.folder
        folder.mkdir()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    def write_archive(self, root: Path) -> None:
        (root / self.dataset.archive.name).write_bytes(self.archive)

    def check(self, root: Path) -> None:
        for split in ("train", "test"):
            names = self.dataset.members[split]
            images, labels = self.dataset.load(split, root)
            assert np.array_equal(images, np.concatenate([self.images[n] for n in names]))
            assert np.array_equal(labels, np.concatenate([self.labels[n] for n in names]))
        assert self.dataset.source(root).note == ""


@pytest.mark.parametrize("base", [Cifar10, Cifar100])
def test_cifar_reads_the_binary_folder(base, tmp_path):
    cifar = Cifar(base)
    cifar.write_folder(tmp_path)
    cifar.check(tmp_path)
    assert cifar.dataset.source(tmp_path).text.endswith(f"{base.folder}/")


@pytest.mark.parametrize("base", [Cifar10, Cifar100])
def test_cifar_reads_the_archive_and_unpacks_nothing(base, tmp_path):
    cifar = Cifar(base)
    cifar.write_archive(tmp_path)
    cifar.check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [base.archive.name]
    assert not (tmp_path.parent / "evil.bin").exists()


def test_cifar_folder_with_a_missing_or_changed_file(tmp_path):
    cifar = Cifar(Cifar10)
    cifar.write_folder(tmp_path)
    path = tmp_path / cifar.dataset.folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"data_batch_3.bin is damaged"):
        cifar.dataset.load("train", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"data_batch_3.bin is missing although its folder"):
        cifar.dataset.load("train", tmp_path)


def test_cifar_archive_that_is_not_the_official_one(tmp_path):
    cifar = Cifar(Cifar100)
    (tmp_path / cifar.dataset.archive.name).write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"cifar-100-binary.tar.gz is damaged or not"):
        cifar.dataset.load("train", tmp_path)
    assert (tmp_path / cifar.dataset.archive.name).read_bytes() == b"not an archive"


def test_cifar_archive_cut_or_without_a_member(tmp_path):
    cifar = Cifar(Cifar10)
    path = tmp_path / cifar.dataset.archive.name
    for data, message in (
        (cifar.archive[: len(cifar.archive) // 2], "not a whole tar.gz archive"),
        (tar("cifar-10-batches-bin", {"test_batch.bin": b""}), "does not hold .*data_batch_1.bin"),
    ):
        path.write_bytes(data)
        cifar.dataset.archive = Remote(cifar.dataset.archive.url, len(data), sha256(data))
        with pytest.raises(UserError, match=message):
            cifar.dataset.load("train", tmp_path)


def parquet(path: Path, blobs: list[bytes], labels: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    images = [{"bytes": blob, "path": f"{i}.x"} for i, blob in enumerate(blobs)]
    pyarrow.parquet.write_table(pyarrow.table({"img": images, "label": labels}), path)


class TinyCifar10(Cifar10):
    train, test = 3, 2


def write_parquet(folder: Path, cifar: Cifar, column: str = "img") -> None:
    """The images of an official layout as lossless parquet files."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = [
            record[: -3 * 32 * 32]
            for name in cifar.dataset.members[split]
            for record in np.frombuffer(cifar.files[name], np.uint8).reshape(2, -1)
        ]
        images = np.concatenate([cifar.images[n] for n in cifar.dataset.members[split]])
        blobs = [encoded(image.transpose(1, 2, 0)) for image in images]
        names = ("coarse_label", "fine_label") if cifar.dataset.label_bytes == 2 else ("label",)
        labels = {name: [int(row[k]) for row in rows] for k, name in enumerate(names)}
        structs = [{"bytes": blob, "path": None} for blob in blobs]
        table = pyarrow.table({column: structs, **labels})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


@pytest.mark.parametrize("base", [Cifar10, Cifar100])
@pytest.mark.parametrize("column", ["img", "image"])
def test_cifar_parquet_is_exact_if_it_has_the_official_checksums(base, column, tmp_path):
    cifar = Cifar(base)
    train, test = cifar.dataset.train, cifar.dataset.test
    type(cifar.dataset).traits = base.traits.replace(train=train, test=test)
    folder = tmp_path / base.__name__.lower()
    write_parquet(folder, cifar, column)
    cifar.check(tmp_path)
    assert "with the checksums of the official" in cifar.dataset.source(tmp_path).text

    table = pyarrow.parquet.read_table(folder / "train.parquet")
    swapped = table.take([1, 0, *range(2, len(table))])
    pyarrow.parquet.write_table(swapped, folder / "train.parquet")
    assert "another order" in cifar.dataset.source(tmp_path).note
    pyarrow.parquet.write_table(table.slice(1), folder / "train.parquet")
    note = f"a subset of {train - 1} training and {test} test images"
    assert cifar.dataset.source(tmp_path).note == note
    assert len(cifar.dataset.load("train", tmp_path)[1]) == train - 1


@pytest.mark.parametrize(
    ("kind", "folder"), [("PNG", "cifar10"), ("JPEG", "cifar10_jpeg"), ("JPEG", "cifar10")]
)
def test_cifar10_reads_parquet_and_marks_jpeg(kind, folder, tmp_path):
    images = np.repeat(np.repeat(pixels(5, 4, 4, 3), 8, axis=1), 8, axis=2)
    blobs = [encoded(image, kind) for image in images]
    parquet(tmp_path / folder / "train.parquet", blobs[:3], [4, 0, 9])
    parquet(tmp_path / folder / "test.parquet", blobs[3:], [1, 2])
    dataset = TinyCifar10()
    train, labels = dataset.load("train", tmp_path)
    assert labels.tolist() == [4, 0, 9] and dataset.load("test", tmp_path)[1].tolist() == [1, 2]
    difference = np.abs(train.astype(int) - images[:3].transpose(0, 3, 1, 2)).mean()
    assert difference == 0 if kind == "PNG" else 0 < difference < 40
    source = dataset.source(tmp_path)
    notes = {"JPEG": Cifar10.traits.stand_in_note, "PNG": "a subset of 3 training and 2"}
    assert source.note.startswith(notes[kind]) and f"{folder}/" in source.text


def test_cifar10_prefers_exact_images_to_jpeg(tmp_path):
    for folder, kind in (("cifar10_jpeg", "JPEG"), ("cifar10", "PNG")):
        blobs = [encoded(pixels(32, 32, 3), kind)] * 3
        parquet(tmp_path / folder / "train.parquet", blobs, [0, 1, 2])
        parquet(tmp_path / folder / "test.parquet", blobs[:2], [0, 1])
    assert "in cifar10/" in TinyCifar10().source(tmp_path).text


def test_cifar10_prefers_the_binary_version(tmp_path):
    cifar = Cifar(Cifar10)
    blobs = [encoded(pixels(32, 32, 3), "JPEG")] * 10
    parquet(tmp_path / "cifar10_jpeg" / "train.parquet", blobs, list(range(10)))
    parquet(tmp_path / "cifar10_jpeg" / "test.parquet", blobs[:2], [0, 1])
    assert cifar.dataset.source(tmp_path).note == Cifar10.traits.stand_in_note
    cifar.write_archive(tmp_path)
    cifar.check(tmp_path)
    cifar.write_folder(tmp_path)
    cifar.check(tmp_path)
    assert "batches-bin" in cifar.dataset.source(tmp_path).text


def test_cifar10_parquet_errors_name_the_file(tmp_path):
    path = tmp_path / "cifar10" / "test.parquet"
    dataset = TinyCifar10()
    path.parent.mkdir()
    parquet(path.with_name("train.parquet"), [encoded(pixels(32, 32, 3))], [0])
    with pytest.raises(UserError, match=r"cifar10: has no file of the test split beside train"):
        dataset.load("test", tmp_path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"test.parquet: expected a parquet file"):
        dataset.load("test", tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b"x"], "label": [0]}), path)
    with pytest.raises(UserError, match="the columns img"):
        dataset.load("test", tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"img": [b"x"], "class": [0]}), path)
    with pytest.raises(UserError, match="the columns img"):
        dataset.load("test", tmp_path)
    parquet(path, [encoded(pixels(32, 32, 3)), b"no image"], [0, 1])
    with pytest.raises(UserError, match=r"test.parquet, row 1: cannot be read as an image"):
        dataset.load("test", tmp_path)
    parquet(path, [encoded(pixels(32, 31, 3))] * 2, [0, 1])
    with pytest.raises(UserError, match="31x32, expected 32x32"):
        dataset.load("test", tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"img": [None], "label": [0]}), path)
    with pytest.raises(UserError, match="an image without bytes"):
        dataset.load("test", tmp_path)


def test_missing_cifar10_names_all_places(tmp_path):
    with pytest.raises(UserError) as caught:
        Cifar10().load("train", tmp_path)
    for place in ("cifar-10-batches-bin/", "cifar-10-binary.tar.gz", "cifar10_jpeg/", "cifar10/"):
        assert place in str(caught.value)


# --- SVHN ---------------------------------------------------------------------------------------


def tiny_svhn(path: Path, labels: list[int]) -> tuple[Svhn, np.ndarray]:
    images = pixels(32, 32, 3, len(labels))
    path.parent.mkdir(exist_ok=True)
    savemat(path, {"X": images, "y": np.array(labels, np.uint8)[:, None]}, do_compression=True)
    data = path.read_bytes()

    class Tiny(Svhn):
        test = 4
        remotes = {"test": Remote(Svhn.remotes["test"].url, len(data), sha256(data))}  # noqa: RUF012

    return Tiny(), images


@pytest.mark.parametrize("place", ["svhn/test_32x32.mat", "test_32x32.mat"])
def test_svhn_reads_mat_files_and_calls_ten_zero(place, tmp_path):
    dataset, mat = tiny_svhn(tmp_path / place, [10, 1, 9, 2])
    images, labels = dataset.load("test", tmp_path)
    assert labels.tolist() == [0, 1, 9, 2] and images.shape == (4, 3, 32, 32)
    assert np.array_equal(images[3, 2], mat[:, :, 2, 3])


def test_svhn_refuses_other_files_and_labels(tmp_path):
    dataset, _ = tiny_svhn(tmp_path / "test_32x32.mat", [0, 1, 2, 3])
    with pytest.raises(UserError, match=r"y lies in 0\.\.3"):
        dataset.load("test", tmp_path)
    with pytest.raises(UserError, match=r"test_32x32.mat is damaged or not the official"):
        Svhn().load("test", tmp_path)


# --- Tiny ImageNet ------------------------------------------------------------------------------


class TinyTinyimagenet(Tinyimagenet):
    classes, train, test = 2, 4, 2


def tiny_imagenet() -> tuple[dict[str, bytes], np.ndarray]:
    """Two classes, listed out of order; one grey image; names that sort as text."""
    images = np.repeat(np.repeat(pixels(6, 8, 8, 3), 8, axis=1), 8, axis=2)
    images[1] = images[1, :, :, :1]
    jpeg = [encoded(image[:, :, 0] if i == 1 else image, "JPEG") for i, image in enumerate(images)]
    files = {
        "wnids.txt": b"n02\nn01\n",
        "train/n02/images/n02_0.JPEG": jpeg[3],
        "train/n01/images/n01_2.JPEG": jpeg[2],
        "train/n01/images/n01_10.JPEG": jpeg[1],
        "train/n01/images/n01_0.JPEG": jpeg[0],
        "train/n01/n01_boxes.txt": b"n01_0.JPEG\t0\t0\t63\t63\n",
        "val/images/val_0.JPEG": jpeg[4],
        "val/images/val_1.JPEG": jpeg[5],
        "val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n",
    }
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in jpeg])
    return files, decoded.transpose(0, 3, 1, 2)


def write_tinyimagenet(root: Path, files: dict[str, bytes], zipped: bool) -> Tinyimagenet:
    dataset = TinyTinyimagenet()
    if not zipped:
        for name, data in files.items():
            path = root / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return dataset
    path = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
        archive.writestr("../evil.txt", "outside")
    dataset.archive = Remote(dataset.archive.url, path.stat().st_size, sha256(path.read_bytes()))
    return dataset


@pytest.mark.parametrize("zipped", [True, False])
def test_tinyimagenet_reads_folder_and_zip_alike(zipped, tmp_path):
    files, expected = tiny_imagenet()
    dataset = write_tinyimagenet(tmp_path, files, zipped)
    images, labels = dataset.load("train", tmp_path)
    assert labels.tolist() == [0, 0, 0, 1] and np.array_equal(images, expected[:4])
    assert np.array_equal(images[1, 0], images[1, 2])  # grey became RGB
    images, labels = dataset.load("test", tmp_path)
    assert labels.tolist() == [1, 0] and np.array_equal(images, expected[4:])
    assert len(list(tmp_path.iterdir())) == 1 and not (tmp_path.parent / "evil.txt").exists()
    assert "validation set" in dataset.source(tmp_path).text


@pytest.mark.parametrize("zipped", [True, False])
def test_tinyimagenet_names_what_is_missing_or_wrong(zipped, tmp_path):
    files, _ = tiny_imagenet()
    lacking = {name: data for name, data in files.items() if name != "val/images/val_1.JPEG"}
    (tmp_path / "a").mkdir()
    dataset = write_tinyimagenet(tmp_path / "a", lacking, zipped)
    with pytest.raises(UserError, match=r"val_1.JPEG"):
        dataset.load("test", tmp_path / "a")
    (tmp_path / "b").mkdir()
    dataset = write_tinyimagenet(tmp_path / "b", {**files, "wnids.txt": b"n02\nn03\n"}, zipped)
    with pytest.raises(UserError, match=r"has the class n01, not in wnids.txt"):
        dataset.load("train", tmp_path / "b")


def test_tinyimagenet_reads_a_subset_in_parquet(tmp_path):
    blobs = [encoded(pixels(64, 64, 3), "JPEG") for _ in range(4)]
    parquet(tmp_path / "tiny_imagenet2" / "train.parquet", blobs[:3], [1, 0, 1])
    parquet(tmp_path / "tiny_imagenet2" / "test.parquet", blobs[3:], [1])
    dataset = Tinyimagenet()
    images, labels = dataset.load("train", tmp_path)
    assert images.shape == (3, 3, 64, 64) and labels.tolist() == [1, 0, 1]
    assert dataset.classes == 2 and dataset.load("test", tmp_path)[1].tolist() == [1]
    note = "2 of 200 classes, 3 training and 1 test images"
    assert dataset.source(tmp_path).note == note


# --- Imagenette ---------------------------------------------------------------------------------


def test_imagenette_is_resized_and_says_that_it_is_a_subset(tmp_path):
    blobs = [encoded(pixels(20, 40, 3)) for _ in range(3)]
    parquet(tmp_path / "imagenette" / "train.parquet", blobs[:2], [3, 9])
    parquet(tmp_path / "imagenette" / "test.parquet", blobs[2:], [0])
    dataset = Imagenette(shape=(3, 8, 8))
    images, labels = dataset.load("train", tmp_path)
    assert images.shape == (2, 3, 8, 8) and labels.tolist() == [3, 9]
    assert dataset.source(tmp_path).note == "a subset of 2 training and 1 test images"
    with pytest.raises(UserError, match="shape is"):
        Imagenette(shape=(1, 8, 8))


@pytest.mark.parametrize("whole", [True, False])
def test_imagenette_reads_the_archive_in_place(whole, tmp_path):
    shades = {"train/n02/b.JPEG": 90, "train/n01/a.JPEG": 30, "val/n02/c.JPEG": 200}
    images = {name: np.full((20, 40, 3), shade, np.uint8) for name, shade in shades.items()}
    data = tar("imagenette2-320", {n: encoded(image, "JPEG") for n, image in images.items()})
    if not whole:
        data = data[: len(data) // 2]
    dataset = Imagenette(shape=(3, 8, 8))
    dataset.archive = Remote(dataset.archive.url, len(data), sha256(data))
    dataset.classes, dataset.train, dataset.test = 2, 2, 1
    (tmp_path / dataset.archive.name).write_bytes(data)
    if not whole:
        with pytest.raises(UserError, match=r"not a whole tar\.gz archive"):
            dataset.load("train", tmp_path)
        return
    train, labels = dataset.load("train", tmp_path)
    assert labels.tolist() == [0, 1] and train[:, 0, 4, 4].tolist() == [30, 90]
    assert dataset.load("test", tmp_path)[0].shape == (1, 3, 8, 8)
    assert [path.name for path in tmp_path.iterdir()] == [dataset.archive.name]
    assert dataset.source(tmp_path).note == ""


# --- people's own -------------------------------------------------------------------------------


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, "JPEG" if path.suffix.lower() == ".jpg" else "PNG"))


def test_image_folder_sorts_resizes_and_crops(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (10, 20, 30)
    write_image(tmp_path / "mine/train/zebra/b.png", wide)
    write_image(tmp_path / "mine/train/zebra/a.JPG", pixels(8, 8, 3))
    write_image(tmp_path / "mine/train/ant/x.png", np.full((4, 4), 200, np.uint8))
    write_image(tmp_path / "mine/test/zebra/t.png", wide)
    (tmp_path / "mine/train/.cache").mkdir()
    (tmp_path / "mine/train/ant/notes.txt").write_text("passed over")
    dataset = ImageFolder(path="mine", shape=[3, 8, 8])
    images, labels = dataset.load("train", tmp_path)
    assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 1, 1] and dataset.classes == 2
    assert np.all(images[0] == 200)
    assert np.all(images[2, :, :, 1:-1] == np.array([10, 20, 30])[:, None, None])
    images, labels = dataset.load("test", tmp_path)
    assert labels.tolist() == [1] and dataset.source(tmp_path).text == "images in mine/"
    grey, _ = ImageFolder(path="mine", shape=(1, 4, 4)).load("train", tmp_path)
    assert grey.shape == (3, 1, 4, 4) and np.all(grey[0] == 200)


def test_image_folder_errors_are_clear(tmp_path):
    dataset = ImageFolder(path="mine")
    with pytest.raises(UserError, match=r"mine/train is missing.*PURIFYBENCH_DATA"):
        dataset.load("train", tmp_path)
    (tmp_path / "mine/train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no class folders"):
        dataset.load("train", tmp_path)
    (tmp_path / "mine/train/cat").mkdir()
    with pytest.raises(UserError, match="cat holds no image"):
        dataset.load("train", tmp_path)
    write_image(tmp_path / "mine/train/cat/1.png", pixels(8, 8, 3))
    (tmp_path / "mine/train/cat/2.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(UserError, match=r"2.png: cannot be read as an image"):
        dataset.load("train", tmp_path)
    write_image(tmp_path / "mine/test/cats/1.png", pixels(8, 8, 3))
    with pytest.raises(UserError, match=r"cats is no class of .*did you mean 'cat'"):
        dataset.load("test", tmp_path)
    with pytest.raises(UserError, match="with 1 or 3 channels"):
        ImageFolder(shape=(2, 8, 8))


@pytest.mark.parametrize("name", ["2.tif", "2.GIF", "2.npy", "2.heic"])
def test_image_folder_refuses_images_that_it_would_leave_out(tmp_path, name):
    write_image(tmp_path / "mine/train/cat/1.png", pixels(8, 8, 3))
    (tmp_path / "mine/train/cat" / name).write_bytes(b"an image")
    with pytest.raises(UserError, match=r"format that is not read \(.png .*convert or remove it"):
        ImageFolder(path="mine").load("train", tmp_path)


@pytest.mark.parametrize("name", ["2.png", "2.tiff"])
def test_image_folder_refuses_an_image_without_a_class(tmp_path, name):
    write_image(tmp_path / "mine/train/cat/1.png", pixels(8, 8, 3))
    (tmp_path / "mine/train/notes.txt").write_text("passed over")
    write_image(tmp_path / "mine/train" / name, pixels(8, 8, 3))
    with pytest.raises(UserError, match=rf"{name}: is in no class's folder.*move it"):
        ImageFolder(path="mine").load("train", tmp_path)


def test_image_folder_refuses_more_than_eight_bits(tmp_path):
    """Pillow clips 16-bit grey values to 255: nearly white images."""
    path = tmp_path / "mine/train/cat/1.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 32_000, np.uint16)).save(path)
    with pytest.raises(UserError, match=r"1\.png: has more than 8 bits per channel"):
        ImageFolder(path="mine").load("train", tmp_path)


# --- the real ones ------------------------------------------------------------------------------

real = pytest.mark.skipif(
    "PURIFYBENCH_DATA" not in os.environ,
    reason="set PURIFYBENCH_DATA to a folder with the real data",
)


def real_root(relative: str) -> Path:
    root = data_root()
    if not (root / relative).exists():
        pytest.skip(f"{root} has no {relative}")
    return root


@real
def test_real_mnist_begins_as_it_should():
    """First labels, and pixel sums of files with the official checksums."""
    root = real_root("MNIST/raw")
    for split, labels, sums, count in (
        ("train", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [27525, 31095], 60_000),
        ("test", [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], [18454, 28850], 10_000),
    ):
        images, all_labels = Mnist().load(split, root)
        assert images.shape == (count, 1, 28, 28)
        assert all_labels[:10].tolist() == labels
        assert images[:2].sum(axis=(1, 2, 3)).tolist() == sums


@real
def test_real_cifar10_is_exact():
    root = real_root("cifar10")
    images, labels = Cifar10().load("test", root)
    assert np.bincount(labels).tolist() == [1000] * 10
    # Mean per channel of the test set: .494, .485, .450 of 255.
    assert np.allclose(images.mean(axis=(0, 2, 3)) / 255, [0.494, 0.485, 0.450], atol=0.005)
    source = Cifar10().source(root)
    assert source.note == "" and "checksums of the official" in source.text


@real
@pytest.mark.parametrize(
    ("dataset", "folder", "classes", "shape"),
    [
        (Cifar100(), "cifar100", 100, (3, 32, 32)),
        (Tinyimagenet(), "tiny_imagenet20", 20, (3, 64, 64)),
        (Imagenette(), "imagenette", 10, (3, 224, 224)),
    ],
)
def test_real_subsets_are_balanced_and_named(dataset, folder, classes, shape):
    root = real_root(folder)
    images, labels = dataset.load("test", root)
    assert images.shape[1:] == shape and dataset.classes == classes
    assert len(set(np.bincount(labels).tolist())) == 1
    assert "test images" in dataset.source(root).note
