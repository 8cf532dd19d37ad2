"""Reader of images in parquet files, in the columns of Hugging Face's image data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits
from purifiers.datasets import _images

IMAGE_COLUMNS = ("img", "image")
"""Possible columns of the images, each {bytes, path} or bytes."""


class Table(NamedTuple):
    """One parquet file.

    Attributes:
        images: encoded images.
        labels: by name of the label column, int64 (n,).
    """

    images: list[bytes]
    labels: dict[str, npt.NDArray]

    def decoded(self, shape: Sequence[int], where: str, fit: bool = False) -> npt.NDArray:
        """The images, uint8 (n, C, H, W).

        Args:
            shape, fit: as for :func:`purifiers.datasets._images.decode`.
            where: name of the file in messages.
        """
        pixels = np.empty((len(self.images), *shape), np.uint8)
        for row, blob in enumerate(self.images):
            pixels[row] = _images.decode(blob, shape, f"{where}, row {row}", fit)
        return pixels

    def lossy(self) -> bool:
        """Whether an image is a JPEG file."""
        return any(_images.is_jpeg(blob) for blob in self.images)


def find_folder(root: Path, patterns: Sequence[str]) -> Path | None:
    """The first folder below ``root`` with a ``train.parquet`` or ``test.parquet``.

    Args:
        patterns: glob patterns of the folder's name, the preferred ones first.
    """
    for pattern in patterns:
        for folder in sorted(root.glob(pattern)):
            if any((folder / f"{split}.parquet").exists() for split in ("train", "test")):
                return folder
    return None


def subset_note(folder: Path, traits: DatasetTraits, before: str = "a subset of ") -> str:
    """How many images the files hold, from their metadata; empty if they hold all.

    Args:
        before: begins the note.

    Raises:
        UserError: a missing or damaged file.
    """
    train, test = (_rows(folder / f"{split}.parquet") for split in ("train", "test"))
    complete = (train, test) == (traits.train, traits.test)
    return "" if complete else f"{before}{train} training and {test} test images"


def _rows(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: int = pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not a whole parquet file ({reason}); repair it") from error
    return rows


def read(path: Path, labels: Sequence[str]) -> Table:
    """Read a parquet file.

    Args:
        labels: names of the label columns.

    Raises:
        UserError: a missing or damaged file, a missing column, or an image without bytes.
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        column = next((name for name in IMAGE_COLUMNS if name in names), IMAGE_COLUMNS[0])
        table = pyarrow.parquet.read_table(path, columns=[column, *labels])
        images = table[column]
        if pyarrow.types.is_struct(images.type):
            images = pyarrow.compute.struct_field(images, "bytes")
        blobs = images.to_pylist()
        by_name = {name: table[name].to_numpy() for name in labels}
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: expected a parquet file with the columns {' or '.join(IMAGE_COLUMNS)} "
            f"{{bytes, path}} and {', '.join(labels)} ({reason}); repair it or move "
            f"{path.parent.name}/ away"
        ) from error
    if any(blob is None for blob in blobs):
        raise UserError(f"{path}: an image without bytes; store the bytes, not only the path")
    return Table(blobs, by_name)
