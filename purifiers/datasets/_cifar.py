"""Reader of the CIFAR data sets in their binary version, or in parquet, arrow or npz files."""

from __future__ import annotations

import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.datasets import _checksum, _columns
from purifiers.datasets._base import Dataset, Source
from purifiers.datasets._download import Remote, obtain


class CifarBinary(Dataset):
    """Records of label bytes and 3072 pixel bytes (red, green, blue plane, each row by row).

    The folder is read if it exists, else the archive, else parquet, arrow or npz files, else the
    archive is downloaded. The archive is read in place: nothing is unpacked. The Python version is
    pickled and therefore never read.

    Attributes:
        folder: folder of the files, below the data folder and inside the archive.
        archive: the official archive.
        members: split to the names of its files, in order.
        checksums: name to the checksum of the file in the folder.
        label_bytes: number of label bytes of a record; the last one is used, one before it is the
            coarse label.
        pickled: names of the Python version, as folder and archive.
    """

    folder: ClassVar[str]
    archive: ClassVar[Remote]
    members: ClassVar[Mapping[str, tuple[str, ...]]]
    checksums: ClassVar[Mapping[str, str]]
    label_bytes: ClassVar[int]
    pickled: ClassVar[tuple[str, ...]]

    def source(self, root: Path) -> Source:
        files = self.found(root)
        if files is not None and files.layout.columns:
            return self.columns_source(files)
        location = files.place if files else self.archive.name
        return Source(f"official binary version, {location}")

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        files = self.found(root)
        if files is not None and files.layout.columns:
            return self.read_columns(files, split)
        names = self.members[split]
        if files is not None and files.paths[0].parent.name == self.folder:
            folder = root / self.folder
            data = [_file(folder / name, self.checksums[name]) for name in names]
        else:
            path = obtain(self.archive, root / self.archive.name, self._looked_for(root))
            data = _archived(path, [f"{self.folder}/{name}" for name in names])
        records = [self._records(blob, name) for blob, name in zip(data, names, strict=True)]
        table = np.concatenate(records)
        images = table[:, self.label_bytes :].reshape(-1, *self.shape)
        return images, table[:, self.label_bytes - 1]

    def has_official_checksums(self, split: str, table: _columns.Table) -> bool:
        labels = [table.labels] if self.label_bytes == 1 else [table.coarse, table.labels]
        if any(column is None for column in labels):
            return False
        columns = [np.asarray(column)[:, np.newaxis].astype(np.uint8) for column in labels]
        images = table.decoded(self.shape)
        names = self.members[split]
        records = np.hstack([*columns, images.reshape(len(images), -1)])
        parts = np.split(records, len(names))
        return all(
            _checksum.matches(part.tobytes(), self.checksums[name])
            for part, name in zip(parts, names, strict=True)
        )

    def _looked_for(self, root: Path) -> str:
        """Possible locations of the files, and why the Python version is not read, for messages."""
        folders = [layout.columns for layout in self.traits.reads if layout.columns]
        places = ", ".join(f"{name}/" for name in (self.folder, *folders))
        text = f"{places} and {self.archive.name} in {root}"
        seen = next((name for name in self.pickled if (root / name).exists()), None)
        if seen is None:
            return text
        reason = f"{seen} is there, but not read: it is pickled, and unpickling can run any code"
        print(f"{root}: {reason}; downloading {self.archive.name}", file=sys.stderr)
        return f"{text} ({reason}; get the binary version)"

    def _records(self, data: bytes, name: str) -> np.ndarray:
        width = self.label_bytes + int(np.prod(self.shape))
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
