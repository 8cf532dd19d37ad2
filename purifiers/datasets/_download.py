"""Downloads that resume, verify a checksum, and report an error in one line."""

from __future__ import annotations

import errno
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from purifiers.core.artifacts import hold_lock
from purifiers.core.errors import UserError
from purifiers.core.progress import Progress
from purifiers.datasets import _checksum

# Our choices: long enough for a slow connection, short enough to detect a broken one.
ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
PROGRESS_SECONDS = 5.0
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Remote:
    """An official file on the network.

    Attributes:
        url: the publisher's URL; the environment variable ``PURIFYBENCH_MIRROR``
            ("http://host:port/folder") replaces scheme and host.
        size: bytes.
        checksum: "sha256:<hex>".
    """

    url: str
    size: int
    checksum: str

    @property
    def name(self) -> str:
        """Name of the file, the last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def address(self) -> str:
        """URL of the request, after ``PURIFYBENCH_MIRROR``.

        Raises:
            UserError: the variable is no URL.
        """
        mirror = os.environ.get("PURIFYBENCH_MIRROR")
        if not mirror:
            return self.url
        if not _is_url(mirror):
            raise UserError(
                f"PURIFYBENCH_MIRROR is {mirror!r}, which is no URL: write "
                "http://<host>:<port>/<folder>, or unset it to download from the publishers"
            )
        return mirror.rstrip("/") + urllib.parse.urlsplit(self.url).path


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        valid_port = parts.port != 0  # raises for one that is no number or too large
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return parts.scheme in ("http", "https") and bool(parts.hostname) and valid_port and plain


def obtain(remote: Remote, path: Path, looked_for: str) -> Path:
    """Return ``path`` with its checksum verified, after downloading the file if it is missing.

    The bytes are written to ``<path>.partial``, which a later call resumes. Two processes that need
    the same file wait for each other. A file that already exists at ``path`` is never changed.

    Args:
        looked_for: locations that were searched before, for the message.

    Raises:
        UserError: no network, an HTTP error, an interrupted connection, a full disk, a wrong
            checksum, a mirror that is no URL, or a file system without locks.
    """
    if path.exists():
        _checksum.check(path, remote.checksum, path)
        return path
    partial = path.with_name(path.name + ".partial")
    remote.address()  # before a folder is made
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            hold_lock(file)
            if path.exists():  # another process finished it while this one waited
                partial.unlink(missing_ok=True)
            else:
                _fill(file, remote)
                file.flush()
                if not _checksum.matches(partial, remote.checksum):
                    file.truncate(0)
                    raise _Failed(f"the bytes received do not have {remote.checksum}")
                partial.rename(path)
    except (_Failed, OSError) as error:
        raise UserError(
            f"{path.name} is missing: looked for {looked_for}; download from {remote.address()} "
            f"failed: {_reason(error)}; set PURIFYBENCH_DATA or put the file at {path}"
        ) from error
    return path


class _Failed(Exception):
    """A failed download for which no other exception exists."""


def _fill(file: BinaryIO, remote: Remote) -> None:
    """Append to ``file`` until it is complete; continue after an interrupted connection."""
    if file.seek(0, os.SEEK_END) > remote.size:
        file.truncate(0)
    for _ in range(ATTEMPTS):
        if file.seek(0, os.SEEK_END) == remote.size:
            return
        try:
            _append(file, remote)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                file.truncate(0)
            raise
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            print(f"{remote.name}: {_reason(error)}, continuing", file=sys.stderr)
    done = file.seek(0, os.SEEK_END)
    if done != remote.size:
        raise _Failed(f"cut at {done} of {remote.size} bytes, run again to continue")


def _append(file: BinaryIO, remote: Remote) -> None:
    done = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "PurifyBench"} | ({"Range": f"bytes={done}-"} if done else {})
    request = urllib.request.Request(remote.address(), headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if done and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            done = 0
        progress = Progress(remote.name, remote.size, "bytes", done, PROGRESS_SECONDS)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            progress.add(len(chunk))
            if progress.done > remote.size:
                file.truncate(0)
                raise _Failed(f"more than the expected {remote.size} bytes arrived")


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return str(error) or type(error).__name__
