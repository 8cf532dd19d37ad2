"""Tiny ImageNet: 200 classes of ImageNet, 64x64 colour (Stanford CS231n)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets import _columns, _images
from purifiers.datasets._base import Dataset, Source
from purifiers.datasets._download import Remote, obtain

# Size and SHA-256: the pointer of this file in Hugging Face's cnak47/cv-datasets. Several public
# repositories that downloaded it from this URL record the same SHA-256.
ARCHIVE = Remote(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    "sha256:6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)
FOLDER = "tiny-imagenet-200"

Read = Callable[[str], bytes]


class Tinyimagenet(Dataset):
    """Tiny ImageNet, read in place from the first of these locations that exists.

    1. ``tiny-imagenet-200/``, the official files;
    2. ``tiny-imagenet-200.zip``, the same as an archive;
    3. a folder ``tiny_imagenet*/`` with parquet, arrow or npz files in one of the layouts of
       :mod:`purifiers.core.data_layouts`, all classes or a subset, numbered from 0;
    4. the archive, downloaded.

    The test split is the official validation set (the official test set has no labels), in the
    order of ``val_annotations.txt``. Training images are ordered by class, then file name.
    Classes are numbered in the order of their WordNet ids, as by torchvision's ImageFolder.
    Grey images become RGB. The numbers of the folder's images are checked; they have no official
    checksum, so that runs on them are other runs than those on the archive.
    """

    traits = DatasetTraits(
        version=2,
        shape=(3, 64, 64),
        classes=200,
        train=100_000,
        test=10_000,
        reads=(
            Layout(
                files=(
                    "tiny-imagenet-200/wnids.txt",
                    "tiny-imagenet-200/train/*/images/*.JPEG",
                    "tiny-imagenet-200/val/val_annotations.txt",
                    "tiny-imagenet-200/val/images/*.JPEG",
                )
            ),
            Layout(files=("tiny-imagenet-200.zip",), verified=True),
            Layout(columns="tiny_imagenet*"),
        ),
    )

    archive: ClassVar[Remote] = ARCHIVE

    def source(self, root: Path) -> Source:
        files = self.found(root)
        if files is not None and files.layout.columns:
            classes = len(set(_columns.read(files, "train").labels.tolist()))
            note = self.subset_note(files, f"{classes} of {self.traits.classes} classes, ")
            return Source(f"{files.described}, without a checksum", note)
        location = f"{FOLDER}/" if (root / FOLDER).is_dir() else self.archive.name
        return Source(f"official files, {location}; the test split is the validation set")

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        files = self.found(root)
        if files is not None and files.layout.columns:
            self.classes = int(_columns.read(files, "train").labels.max()) + 1
            return self.read_columns(files, split)
        with self._open(root) as (names, read):
            wordnet_ids = sorted(_lines(read, "wnids.txt"))
            numbers = {wordnet_id: number for number, wordnet_id in enumerate(wordnet_ids)}
            entries = _train(names) if split == "train" else _validation(read)
            images = np.empty((len(entries), *self.shape), np.uint8)
            labels = np.empty(len(entries), np.int64)
            for index, (name, wordnet_id) in enumerate(entries):
                if wordnet_id not in numbers:
                    raise UserError(
                        f"{root}: {name} has the class {wordnet_id}, not in wnids.txt; "
                        "replace it by the official files"
                    )
                images[index] = _images.decode(read(name), self.shape, f"{root}: {name}")
                labels[index] = numbers[wordnet_id]
        return images, labels

    @contextmanager
    def _open(self, root: Path) -> Iterator[tuple[list[str], Read]]:
        """Names of the training images, and a reader, both relative to ``tiny-imagenet-200/``."""
        folder = root / FOLDER
        if folder.is_dir():
            paths = folder.glob("train/*/images/*.JPEG")
            yield [path.relative_to(folder).as_posix() for path in paths], _reader(folder)
            return
        looked_for = f"{FOLDER}/, {self.archive.name} and tiny_imagenet*/ in {root}"
        path = obtain(self.archive, root / self.archive.name, looked_for)
        with zipfile.ZipFile(path) as archive:
            prefix = f"{FOLDER}/train/"
            names = [n for n in archive.namelist() if n.startswith(prefix) and n.endswith(".JPEG")]
            yield [name.removeprefix(f"{FOLDER}/") for name in names], _zip_reader(archive, path)


def _train(names: list[str]) -> list[tuple[str, str]]:
    return [(name, name.split("/")[1]) for name in sorted(names)]


def _validation(read: Read) -> list[tuple[str, str]]:
    rows = (line.split("\t") for line in _lines(read, "val/val_annotations.txt"))
    return [(f"val/images/{row[0]}", row[1]) for row in rows]


def _lines(read: Read, name: str) -> list[str]:
    return [line for line in read(name).decode().splitlines() if line.strip()]


def _reader(folder: Path) -> Read:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}") from error

    return read


def _zip_reader(archive: zipfile.ZipFile, path: Path) -> Read:
    def read(name: str) -> bytes:
        try:
            return archive.read(f"{FOLDER}/{name}")
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} does not contain a complete {name} ({error}); move it away"
            ) from error

    return read
