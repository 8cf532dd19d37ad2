"""Checksums of files and of their contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from purifiers.core.errors import UserError

_CHUNK_BYTES = 1 << 20


def matches(data: bytes | Path, expected: str) -> bool:
    """Whether bytes, or a file's content, have the checksum ``"sha256:<hex>"`` (or ``"md5:"``)."""
    algorithm, _, hexdigest = expected.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    if isinstance(data, bytes):
        digest.update(data)
    else:
        with data.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest() == hexdigest


def check(data: bytes | Path, expected: str, path: Path) -> None:
    """Check that data have the expected checksum.

    Args:
        path: file of the data, for the message.

    Raises:
        UserError: the checksum differs. The file is not changed.
    """
    if not matches(data, expected):
        raise UserError(
            f"{path} is damaged or not the official file (expected {expected}); "
            "move it away to download it again, or replace it by the official file"
        )
