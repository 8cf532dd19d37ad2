"""Reader of the CIFAR data sets in their binary version."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from purifiers.core.errors import UserError
from purifiers.datasets import _checksum
from purifiers.datasets._base import Dataset, Source
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
        label_bytes: label bytes per record; the last one is used.
    """

    folder: ClassVar[str]
    archive: ClassVar[Remote]
    members: ClassVar[Mapping[str, tuple[str, ...]]]
    checksums: ClassVar[Mapping[str, str]]
    label_bytes: ClassVar[int]

    def source(self, root: Path) -> Source:
        location = f"{self.folder}/" if (root / self.folder).is_dir() else self.archive.name
        return Source(f"official binary version, {location}")

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        names = self.members[split]
        folder = root / self.folder
        if folder.is_dir():
            data = [_file(folder / name, self.checksums[name]) for name in names]
        else:
            path = obtain(self.archive, root / self.archive.name, self.looked_for(root))
            data = _archived(path, [f"{self.folder}/{name}" for name in names])
        records = [self._records(blob, name) for blob, name in zip(data, names, strict=True)]
        table = np.concatenate(records)
        images = table[:, self.label_bytes :].reshape(-1, *self.shape)
        return images, table[:, self.label_bytes - 1]

    def looked_for(self, root: Path) -> str:
        """Possible locations of the files, for messages."""
        return f"{self.folder}/ and {self.archive.name} in {root}"

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
