"""Reader of the idx format, and base of the data sets that consist of four idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.datasets import _checksum, _columns
from purifiers.datasets._base import Dataset, Source
from purifiers.datasets._download import Remote, obtain

_UNSIGNED_BYTE = 8
_PREFIXES = {"train": "train", "test": "t10k"}


def parse(data: bytes, dimensions: int, path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes.

    The format is two zero bytes, the type (8: unsigned byte), the number of dimensions, the
    dimensions as big-endian int32, then the values, last index fastest (the MNIST page of LeCun,
    Cortes and Burges).

    Returns:
        a uint8 array with that many dimensions.

    Raises:
        UserError: another magic number, or a number of values that does not match the dimensions.
    """
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise UserError(
            f"{path}: not an idx file of bytes with {dimensions} dimensions "
            f"(it begins with 0x{data[:4].hex()}); replace it by the official file"
        )
    shape = struct.unpack(f">{dimensions}i", data[4:start])
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"{path}: {len(data) - start} values, but its header declares {shape}; "
            "replace it by the official file"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _header(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}i", *array.shape)
    return bytes((0, 0, _UNSIGNED_BYTE, array.ndim)) + shape


class IdxDataset(Dataset):
    """Grey images in torchvision's folders: ``<folder>/raw/train-images-idx3-ubyte[.gz]`` ...

    Where these are missing, parquet, arrow or npz files are read, see
    :mod:`purifiers.core.data_layouts`. They are exact if their images and labels, written as idx
    files, have the official checksums.

    Attributes:
        folder: folder below the data folder.
        remotes: name without ".gz" to the official compressed file.
        checksums: name without ".gz" to the checksum of the uncompressed content, so that a
            recompressed file is accepted.
    """

    folder: ClassVar[str]
    remotes: ClassVar[Mapping[str, Remote]]
    checksums: ClassVar[Mapping[str, str]]

    def source(self, root: Path) -> Source:
        files = self.found(root)
        return (
            self.columns_source(files) if files and files.layout.columns else super().source(root)
        )

    def has_official_checksums(self, split: str, table: _columns.Table) -> bool:
        images = table.decoded(self.shape)[:, 0]
        prefix = _PREFIXES[split]
        written = {
            f"{prefix}-images-idx3-ubyte": images,
            f"{prefix}-labels-idx1-ubyte": table.labels.astype(np.uint8),
        }
        return all(
            _checksum.matches(_header(array) + array.tobytes(), self.checksums[name])
            for name, array in written.items()
        )

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        files = self.found(root)
        if files and files.layout.columns:
            return self.read_columns(files, split)
        raw = root / self.folder / "raw"
        images = self._array(f"{_PREFIXES[split]}-images-idx3-ubyte", 3, raw)
        labels = self._array(f"{_PREFIXES[split]}-labels-idx1-ubyte", 1, raw)
        return images[:, np.newaxis], labels

    def _array(self, name: str, dimensions: int, raw: Path) -> np.ndarray:
        path = raw / name
        if path.exists():
            data = path.read_bytes()
        else:
            path = raw / f"{name}.gz"
            if not path.exists():
                folders = " and ".join(
                    f"{layout.columns}/" for layout in self.traits.reads if layout.columns
                )
                places = f"{name} and {name}.gz in {raw}, {folders} in {raw.parents[1]}"
                obtain(self.remotes[name], path, places)
            try:
                data = gzip.decompress(path.read_bytes())
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: not a whole gzip file ({error}); move it away") from error
        _checksum.check(data, self.checksums[name], path)
        return parse(data, dimensions, path)
