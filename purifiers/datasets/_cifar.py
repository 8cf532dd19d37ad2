"""Reader of the CIFAR data sets in their binary version, and of the same images in parquet."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.datasets import _checksum, _parquet
from purifiers.datasets._base import SPLITS, Dataset, Source
from purifiers.datasets._download import Remote, obtain


class CifarBinary(Dataset):
    """Records of label bytes and 3072 pixel bytes (red, green, blue plane, each row by row).

    The folder is read if it exists, else the archive, which is downloaded if it is missing. The
    archive is read in place: nothing is unpacked. The Python version is pickled and therefore never
    read.

    Attributes:
        folder: folder of the files, below the data folder and inside the archive.
        archive: the official archive.
        members: split to the names of its files, in order.
        checksums: name to the checksum of the file in the folder.
        label_columns: columns of a parquet file that are the label bytes of a record, in order; the
            last one is used.
        parquet_folders: folders of parquet files, the preferred one first.
    """

    folder: ClassVar[str]
    archive: ClassVar[Remote]
    members: ClassVar[Mapping[str, tuple[str, ...]]]
    checksums: ClassVar[Mapping[str, str]]
    label_columns: ClassVar[tuple[str, ...]]
    parquet_folders: ClassVar[tuple[str, ...]]

    def source(self, root: Path) -> Source:
        if (folder := self._parquet_folder(root)) is not None:
            return self._parquet_source(folder)
        location = f"{self.folder}/" if (root / self.folder).is_dir() else self.archive.name
        return Source(f"official binary version, {location}")

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        if (parquet := self._parquet_folder(root)) is not None:
            images, labels = self._decoded(parquet, split)
            self._accept_subset(split, len(labels))
            return images, labels[:, -1]
        names = self.members[split]
        folder = root / self.folder
        if folder.is_dir():
            data = [_file(folder / name, self.checksums[name]) for name in names]
        else:
            path = obtain(self.archive, root / self.archive.name, self.looked_for(root))
            data = _archived(path, [f"{self.folder}/{name}" for name in names])
        records = [self._records(blob, name) for blob, name in zip(data, names, strict=True)]
        table = np.concatenate(records)
        images = table[:, len(self.label_columns) :].reshape(-1, *self.shape)
        return images, table[:, len(self.label_columns) - 1]

    def looked_for(self, root: Path) -> str:
        """Possible locations of the files, for messages."""
        folders = (f"{name}/" for name in (self.folder, *self.parquet_folders))
        return f"{', '.join(folders)} and {self.archive.name} in {root}"

    def _parquet_folder(self, root: Path) -> Path | None:
        """The folder of parquet files; None if there is none, or official files are there."""
        if (root / self.folder).is_dir() or (root / self.archive.name).exists():
            return None
        return _parquet.find_folder(root, self.parquet_folders)

    def _decoded(self, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and all label columns (n, columns) of one parquet file."""
        path = folder / f"{split}.parquet"
        table = _parquet.read(path, self.label_columns)
        labels = np.stack([table.labels[name] for name in self.label_columns], axis=1)
        return table.decoded(self.shape, str(path)), labels

    def _accept_subset(self, split: str, number: int) -> None:
        """Expect as many images as a parquet file has, at most the official number."""
        official = getattr(self.traits, split)
        setattr(self, split, min(number, official))

    def _parquet_source(self, folder: Path) -> Source:
        """Whether the images of all parquet files are the official ones."""
        where = f"parquet files in {folder.name}/"
        if any(_parquet.read(folder / f"{split}.parquet", ()).lossy() for split in SPLITS):
            return Source(where, self.traits.stand_in_note or "recompressed as JPEG")
        if note := _parquet.subset_note(folder, self.traits):
            return Source(where, note)
        if all(self._official(split, *self._decoded(folder, split)) for split in SPLITS):
            return Source(f"{where}, with the MD5 of the official binary files")
        return Source(where, "other pixels or another order than the official files")

    def _official(self, split: str, images: np.ndarray, labels: np.ndarray) -> bool:
        """Whether the images as binary records, cut into files, have the official checksums."""
        names = self.members[split]
        records = np.hstack([labels.astype(np.uint8), images.reshape(len(images), -1)])
        parts = np.split(records, len(names))
        return all(
            _checksum.matches(part.tobytes(), self.checksums[name])
            for part, name in zip(parts, names, strict=True)
        )

    def _records(self, data: bytes, name: str) -> np.ndarray:
        width = len(self.label_columns) + int(np.prod(self.shape))
        if len(data) % width:
            raise UserError(
                f"{name}: {len(data)} bytes are not a multiple of the {width} bytes of a record; "
                "replace it by the official file"
            )
        return np.frombuffer(data, np.uint8).reshape(-1, width)


def _file(path: Path, checksum: str) -> bytes:
    if not path.exists():
        raise UserError(
            f"{path} is missing although its folder exists; add the file or move "
            f"{path.parent.name}/ away"
        )
    data = path.read_bytes()
    _checksum.check(data, checksum, path)
    return data


def _archived(path: Path, names: list[str]) -> list[bytes]:
    """Contents of the named members, in that order, read in one pass and without unpacking."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in names else None
                if file is not None:
                    contents[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a whole tar.gz archive ({error}); move it away") from error
    if missing := [name for name in names if name not in contents]:
        raise UserError(f"{path} does not hold {', '.join(missing)}; move it away")
    return [contents[name] for name in names]
