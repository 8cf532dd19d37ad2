"""Base class of all data sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from purifiers.core.component import Component
from purifiers.core.data_layouts import SPLITS, Files, find
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.traits import DatasetTraits
from purifiers.datasets import _columns


class Source(NamedTuple):
    """Origin of the images.

    Attributes:
        text: the layout of the files that were read.
        note: "" for the original images, else how they differ; printed with every result.
    """

    text: str
    note: str = ""


class Dataset(Component, ABC):
    """A labelled set of images of one shape, with a training and a test split.

    ``traits`` declare shape, classes, numbers of images and the layouts of the files. Files are
    read from the data folder; a missing official file is downloaded.

    Attributes:
        shape: (C, H, W).
        classes: number of classes; None before the files are read if only they determine it.
        train, test: expected numbers of images; None as above.
        origin: the layout of the files.
    """

    traits: ClassVar[DatasetTraits]
    shape: tuple[int, int, int]
    classes: int | None
    train: int | None
    test: int | None
    origin: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "traits" in vars(cls):
            traits = cls.traits
            cls.shape, cls.classes = traits.shape, traits.classes
            cls.train, cls.test = traits.train, traits.test

    def load(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read one split completely and in its fixed order.

        Args:
            split: "train" or "test".
            root: the data folder, see :func:`purifiers.core.data.data_root`.

        Returns:
            images, uint8 (n, C, H, W) in 0..255, and labels, int64 (n,) in 0..classes - 1.

        Raises:
            UserError: an unknown split; files that are missing, damaged or not the official ones;
                an unexpected number of images, shape or label.
        """
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise UserError(f"there is no split {split!r}{hint}; choose 'train' or 'test'")
        images, labels = self.read(split, Path(root))
        where = f"{type(self).__name__.lower()}, {split} split, below {root}"
        if images.dtype != np.uint8 or images.shape[1:] != tuple(self.shape):
            raise UserError(
                f"{where}: images are {images.dtype} {images.shape[1:]}, "
                f"expected uint8 {tuple(self.shape)}"
            )
        expected = self.train if split == "train" else self.test
        if len(images) != len(labels) or len(images) != (expected or len(images)):
            raise UserError(
                f"{where}: {len(images)} images and {len(labels)} labels, "
                f"expected {expected or 'as many of the one as of the other'}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{where}: labels are {labels.dtype}, expected integers")
        labels = labels.astype(np.int64)
        if len(labels) and not 0 <= labels.min() <= labels.max() < (self.classes or np.inf):
            raise UserError(
                f"{where}: labels lie in {labels.min()}..{labels.max()}, "
                f"expected 0..{(self.classes or 0) - 1}"
            )
        return np.ascontiguousarray(images), labels

    def source(self, root: Path) -> Source:
        """Files that :meth:`load` reads or would download, and what differs from the original."""
        return Source(self.origin)

    def found(self, root: Path) -> Files | None:
        """The files of the first layout of ``traits.reads`` that is there; None: no file is."""
        return find(self.traits.reads, vars(self), root)

    def read_columns(
        self, files: Files, split: str, fit: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a split of parquet, arrow or npz files, which may hold a subset of the images.

        Args:
            fit: resize and crop the images, see :func:`purifiers.datasets._images.decode`.
        """
        table = _columns.read(files, split)
        setattr(self, split, min(len(table.labels), getattr(self.traits, split)))
        return table.decoded(self.shape, fit), table.labels

    def subset_note(self, files: Files, before: str = "a subset of ") -> str:
        """How many images parquet, arrow or npz files hold; empty if they hold all.

        Args:
            before: begins the note.
        """
        train, test = (_columns.count(files, split) for split in SPLITS)
        complete = (train, test) == (self.traits.train, self.traits.test)
        return "" if complete else f"{before}{train} training and {test} test images"

    def columns_source(self, files: Files) -> Source:
        """The source of parquet, arrow or npz files of images that have official checksums.

        They are exact if :meth:`has_official_checksums` holds for both splits.
        """
        where = files.described
        tables = {split: _columns.read(files, split) for split in SPLITS}
        if any(table.lossy() for table in tables.values()):
            return Source(where, self.traits.stand_in_note or "recompressed as JPEG")
        if note := self.subset_note(files):
            return Source(where, note)
        if all(self.has_official_checksums(split, table) for split, table in tables.items()):
            return Source(f"{where}, with the checksums of the official files")
        return Source(where, "other pixels or another order than the official files")

    def has_official_checksums(self, split: str, table: _columns.Table) -> bool:
        """Whether images and labels, in the official format, have the official checksums."""
        return False

    @abstractmethod
    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read images and integer labels as :meth:`load` returns them, without its checks."""
