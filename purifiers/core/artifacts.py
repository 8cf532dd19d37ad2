"""Run folders, and files that are written completely or not at all.

A run's folder is ``<runs>/<stage>/<id>/``. Every file is written under a temporary name and
renamed. ``run.json``, the record with the SHA-256 of every file, is written last. A folder without
it is unfinished work that the next start continues.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from purifiers.core.allocation import this_process
from purifiers.core.errors import UserError
from purifiers.core.spec import Spec, read_spec

AnySpec = TypeVar("AnySpec", bound=Spec)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def short_hash(content: Any) -> str:
    """First eight hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Convert a full-disk error raised inside the block into a one-line error.

    Raises:
        UserError: the disk, quota or file-size limit was reached while writing ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(existing).free / 2**20
        raise UserError(
            f"{path}: no room to write it ({os.strerror(error.errno or 0)}; {free:.0f} MiB free); "
            "free some space and start again, finished work is kept"
        ) from None


def hold_lock(file: IO[Any], wait: bool = True) -> bool:
    """Lock an open file exclusively until it is closed.

    Args:
        wait: wait while another process holds the lock; else give up.

    Returns:
        Whether this process holds the lock.

    Raises:
        UserError: its file system has no locks, as some network file systems.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            f"{file.name}: its file system has no file locks ({os.strerror(error.errno or 0)}), "
            "without which two processes would overwrite each other: mount it with locks (Lustre: "
            "-o flock) or move this folder to another file system"
        ) from None
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        UserError: the disk is full. An existing file of that name is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file completely or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError:
        raise UserError(f"{path}: not readable as JSON; remove it and start again") from None


def write_sealed(path: Path, content: bytes) -> None:
    """Write ``content`` after its SHA-256 (32 bytes), so that a reader detects damage."""
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> bytes:
    """Read the content of a file that :func:`write_sealed` wrote.

    Raises:
        UserError: the content does not match the stored SHA-256.
    """
    stored = path.read_bytes()
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        raise UserError(f"{path}: damaged (truncated or bit-flipped); remove it and start again")
    return stored[32:]


class RunHeld(UserError):
    """Another process executes the run."""


@dataclass(frozen=True)
class Record:
    """Content of ``run.json``: spec, files and results of a finished run.

    Attributes:
        id: the run's id.
        stage: the run's stage.
        spec: everything the run depends on besides the code.
        files: file name to its ``sha256`` and ``bytes``.
        summary: results that the stage reports.
        elapsed_seconds: wall-clock time of the attempt that finished the run.
        provenance: versions of code and libraries, device, threads and time.
    """

    id: str
    stage: str
    spec: Spec
    files: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    elapsed_seconds: float
    provenance: dict[str, Any]

    def spec_as(self, kind: type[AnySpec]) -> AnySpec:
        """The spec, checked to be of type ``kind``.

        Raises:
            UserError: the run is of another stage.
        """
        if not isinstance(self.spec, kind):
            raise UserError(f"run {self.id}: stage is {self.stage!r}, expected {kind.stage!r}")
        return self.spec


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        root: folder of all runs, ``results/runs``.
        stage: a key of :data:`purifiers.core.spec.SPECS`, such as ``attack``.
        id: readable slug, followed by eight hexadecimal digits of the identity's hash.
    """

    root: Path
    stage: str
    id: str

    @property
    def path(self) -> Path:
        """The folder that holds the run's files."""
        return self.root / self.stage / self.id

    @property
    def record_path(self) -> Path:
        """Path of ``run.json``, which exists only if the run is finished."""
        return self.path / "run.json"

    @property
    def failure_path(self) -> Path:
        """Path of ``failure.json``, which exists if the last attempt failed."""
        return self.path / "failure.json"

    def complete(self) -> bool:
        """Whether the run is finished."""
        return self.record_path.exists()

    def failure(self) -> str | None:
        """The error of the last attempt; None unless it failed."""
        return read_json(self.failure_path)["error"] if self.failure_path.exists() else None

    def fail(self, error: str) -> None:
        """Write ``failure.json`` with the error of a failed attempt."""
        write_json(self.failure_path, {"id": self.id, "stage": self.stage, "error": error})

    def finish(
        self,
        spec: Spec,
        files: list[str],
        summary: dict[str, Any],
        elapsed_seconds: float,
        provenance: dict[str, Any],
    ) -> None:
        """Write ``run.json``, which marks the run as finished, and delete ``failure.json``."""
        digests = {
            name: {"sha256": sha256(self.path / name), "bytes": (self.path / name).stat().st_size}
            for name in files
        }
        write_json(
            self.record_path,
            {
                "id": self.id,
                "stage": self.stage,
                "spec": spec.to_json(),
                "files": digests,
                "summary": summary,
                "elapsed_seconds": round(elapsed_seconds, 3),
                "provenance": provenance,
            },
        )
        self.failure_path.unlink(missing_ok=True)

    def record(self, verify: bool = True) -> Record:
        """The run's record.

        Args:
            verify: compare size and SHA-256 of every file with the record.

        Raises:
            UserError: the run is not finished, the record is of another run, or a file is damaged.
        """
        if not self.complete():
            raise UserError(f"{self.path}: this run is not finished; start its stage again")
        content = read_json(self.record_path)
        if content.get("id") != self.id or content.get("stage") != self.stage:
            raise UserError(
                f"{self.path}: holds run {content.get('id')!r}, not {self.id!r}: "
                "its files come from another run; remove the folder and start again"
            )
        for name, expected in content["files"].items() if verify else ():
            file = self.path / name
            if not file.exists() or file.stat().st_size != expected["bytes"]:
                raise UserError(f"{file}: missing or truncated; remove {self.path} and start again")
            if sha256(file) != expected["sha256"]:
                raise UserError(
                    f"{file}: checksum mismatch: its SHA-256 differs from run.json; "
                    f"remove {self.path} and start again"
                )
        spec = read_spec(self.stage, content["spec"], f"{self.record_path}: spec")
        return Record(**{**content, "spec": spec})

    @contextlib.contextmanager
    def lock(self, wait: bool = True) -> Iterator[None]:
        """Hold an exclusive lock on the folder, and name this process in the lock file.

        Args:
            wait: wait while another process holds it.

        Raises:
            RunHeld: another process holds it, and ``wait`` is False.
            UserError: the file system has no locks, or is full.
        """
        lock = self.path / ".lock"
        with room_for(lock):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.touch()
        with lock.open("a+") as file:
            if not hold_lock(file, wait):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunHeld(
                    f"{self.path}: {holder} executes this run already: wait until it ends, or end "
                    "it, then start again"
                )
            with room_for(lock):
                file.truncate(0)
                file.write(this_process())
                file.flush()
            yield
