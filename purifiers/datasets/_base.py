"""What every dataset promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from purifiers.core.errors import UserError, did_you_mean

SPLITS = ("train", "test")


class Source(NamedTuple):
    """Where the images come from.

    Attributes:
        text: the layout that was read.
        note: "" for the original images, else how they differ; every output must repeat it.
    """

    text: str
    note: str = ""


class Dataset(ABC):
    """A labelled set of images of one shape, in a training and a test split.

    A component's file has the module-level literals ``VERSION``, ``SHAPE`` (C, H, W),
    ``CLASSES``, ``TRAIN`` and ``TEST`` (numbers of images; None where only the files can tell)
    and, if its images are not the ones a paper means, ``STAND_IN_NOTE``. The class takes them
    as its attributes, so that a subclass can expect something else. Files are looked for below
    the data folder; an official one that is missing is downloaded.
    """

    shape: tuple[int, int, int]
    classes: int | None
    train: int | None
    test: int | None
    origin: ClassVar[str] = ""

    def load(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read one split, whole and in its fixed order.

        Args:
            split: "train" or "test".
            root: the data folder, see :func:`purifiers.core.data.data_root`.

        Returns:
            images, uint8 (n, C, H, W) in 0..255, and labels, int64 (n,) in 0..classes - 1.

        Raises:
            UserError: an unknown split; files that are missing, damaged or not the official
                ones; a number, shape or label of images that is not the expected one.
        """
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise UserError(f"there is no split {split!r}{hint}; the splits are 'train' and 'test'")
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
        """Which files :meth:`load` reads (or would download), and what is different about them."""
        return Source(self.origin)

    @abstractmethod
    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        """Images and integer labels as :meth:`load` returns them, before its checks."""
