"""Checksums of files and of what is inside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from purifiers.core.errors import UserError

_CHUNK_BYTES = 1 << 20


def matches(data: bytes | Path, expected: str) -> bool:
    """Whether bytes, or a file's content, have the checksum ``"sha256:<hex>"`` (or ``"md5:"``)."""
    algorithm, _, wanted = expected.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    if isinstance(data, bytes):
        digest.update(data)
    else:
        with data.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest() == wanted


def check(data: bytes | Path, expected: str, path: Path) -> None:
    """Refuse data whose checksum is not the expected one.

    Args:
        path: the file the data come from, for the message.

    Raises:
        UserError: it differs. The file is left where it is.
    """
    if not matches(data, expected):
        raise UserError(
            f"{path} is damaged or not the official file (expected {expected}); "
            "move it away to have it downloaded, or put the right one in its place"
        )
