"""Reader of images with labels in parquet, arrow and npz files.

Parquet and arrow files have the columns of Hugging Face's image data sets, and npz files the arrays
of Keras' data sets. :mod:`purifiers.core.data_layouts` lists where the files may be.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from purifiers.core.data_layouts import Files
from purifiers.core.errors import UserError
from purifiers.datasets import _images

IMAGES = ("img", "image", "images")
"""Possible columns of the images, each {bytes, path} or bytes; ``images`` in an npz file."""
LABELS = ("fine_label", "label", "labels")
"""Possible columns of the labels."""
EXTRA = "coarse_label"
"""Column of CIFAR-100's coarse labels, which are read if they are there."""


class Table(NamedTuple):
    """The images of one split.

    Attributes:
        images: encoded images, or their pixels, uint8 (n, H, W), (n, H, W, C) or (n, C, H, W).
        labels: int64 (n,).
        coarse: coarse labels, int64 (n,); None if the files have none.
        where: the files, for messages.
    """

    images: Sequence[bytes] | npt.NDArray
    labels: npt.NDArray
    coarse: npt.NDArray | None
    where: str

    def decoded(self, shape: Sequence[int], fit: bool = False) -> npt.NDArray:
        """The images, uint8 (n, C, H, W).

        Args:
            shape, fit: as for :func:`purifiers.datasets._images.decode`.

        Raises:
            UserError: an image that cannot be decoded or has another size.
        """
        if isinstance(self.images, np.ndarray):
            return self._arranged(self.images, tuple(shape))
        pixels = np.empty((len(self.images), *shape), np.uint8)
        for row, blob in enumerate(self.images):
            pixels[row] = _images.decode(blob, shape, f"{self.where}, row {row}", fit)
        return pixels

    def _arranged(self, pixels: npt.NDArray, shape: tuple[int, ...]) -> npt.NDArray:
        channels, height, width = shape
        if pixels.dtype == np.uint8 and pixels.ndim in (3, 4):
            if pixels.shape[1:] == shape:
                return pixels
            if pixels.shape[1:] == (height, width, channels):
                return pixels.transpose(0, 3, 1, 2)
            if pixels.shape[1:] == (height, width) and channels == 1:
                return pixels[:, np.newaxis]
        raise UserError(
            f"{self.where}: images are {pixels.dtype} {pixels.shape}, expected uint8 "
            f"(n, {height}, {width}, {channels}); store them so"
        )

    def lossy(self) -> bool:
        """Whether an image is a JPEG file."""
        if isinstance(self.images, np.ndarray):
            return False
        return any(_images.is_jpeg(blob) for blob in self.images)


def count(files: Files, split: str) -> int:
    """Number of images of a split, from the files' metadata where that is possible.

    Raises:
        UserError: a missing or damaged file.
    """
    import pyarrow
    import pyarrow.parquet

    if any(path.suffix != ".parquet" for path in files.of[split]):
        return len(read(files, split).labels)
    total = 0
    for path in _paths(files, split):
        try:
            total += pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from error
    return total


def read(files: Files, split: str) -> Table:
    """Read a split, its files in the order of their names.

    Raises:
        UserError: a missing or damaged file, a missing column or array, or an image without bytes.
    """
    paths = _paths(files, split)
    if paths[0].suffix == ".npz":
        return _read_npz(paths[0], split)
    images: list[bytes] = []
    labels: list[npt.NDArray] = []
    coarse: list[npt.NDArray] = []
    for path in paths:
        _read_columns(path, images, labels, coarse)
    extra = np.concatenate(coarse) if len(coarse) == len(paths) else None
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    return Table(images, np.concatenate(labels), extra, where)


def _paths(files: Files, split: str) -> tuple[Path, ...]:
    if not files.of[split]:
        raise UserError(
            f"{files.paths[0].parent}: has no file of the {split} split beside "
            f"{files.paths[0].name}: add it or move the folder away"
        )
    return files.of[split]


def _read_columns(
    path: Path, images: list[bytes], labels: list[npt.NDArray], coarse: list[npt.NDArray]
) -> None:
    """Append the columns of a parquet or arrow file."""
    import pyarrow
    import pyarrow.compute

    try:
        table = _table(path)
        column = _first(IMAGES, table.column_names)
        if pyarrow.types.is_struct(table[column].type):
            blobs = pyarrow.compute.struct_field(table[column], "bytes").to_pylist()
        else:
            blobs = table[column].to_pylist()
        labels.append(table[_first(LABELS, table.column_names)].to_numpy())
        if EXTRA in table.column_names:
            coarse.append(table[EXTRA].to_numpy())
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error
    if not all(isinstance(blob, bytes) for blob in blobs):
        raise UserError(f"{path}: an image without bytes; store the bytes, not only the path")
    images += blobs


def _table(path: Path) -> Any:
    """The columns of a parquet file, or of an arrow stream, as ``save_to_disk`` writes it."""
    import pyarrow.ipc
    import pyarrow.parquet

    wanted = {*IMAGES, *LABELS, EXTRA}
    if path.suffix == ".parquet":
        names = pyarrow.parquet.read_schema(path).names
        return pyarrow.parquet.read_table(path, columns=[n for n in names if n in wanted])
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
        table = stream.read_all()
    return table.select([name for name in table.column_names if name in wanted])


def _first(names: Sequence[str], present: Sequence[str]) -> str:
    for name in names:
        if name in present:
            return name
    raise KeyError(f"no {names[0]}")


def _unreadable(path: Path, error: Exception) -> UserError:
    kind = path.suffix.removeprefix(".")
    reason = str(error).split("\n")[0]
    return UserError(
        f"{path}: expected {'an' if kind == 'arrow' else 'a'} {kind} file with the columns "
        f"{' or '.join(IMAGES)} {{bytes, path}} and {' or '.join(LABELS)} ({reason}); repair it or "
        f"move {path.parent.name}/ away"
    )


def _read_npz(path: Path, split: str) -> Table:
    """Read ``x_<split>`` and ``y_<split>`` of a file with both splits, or images and labels."""
    names = [(f"x_{split}", f"y_{split}")]
    if path.stem == split:
        names += [(images, labels) for images in IMAGES for labels in LABELS]
    try:
        with np.load(path, allow_pickle=False) as content:
            pair = next((pair for pair in names if set(pair) <= set(content.files)), None)
            if pair is None:
                first, last = " and ".join(names[0]), " and ".join(("images", "labels"))
                expected = first if len(names) == 1 else f"{first}, or {last}"
                raise UserError(
                    f"{path}: has the arrays {', '.join(content.files)}, expected {expected}: "
                    "rename them"
                )
            images, labels = (content[name] for name in pair)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole npz file ({error}); repair it") from error
    return Table(images, labels.reshape(-1), None, str(path))
