"""Files that are either whole and recorded, or not there.

A run's folder is ``<runs>/<stage>/<id>/``. Everything is written under a temporary name and
renamed; ``run.json``, the record with the digest of every file, is written last. A folder
without it is unfinished work that the next start continues.
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
from typing import Any, TypeVar

from purifiers.core.errors import UserError
from purifiers.core.spec import Spec, read_spec

AnySpec = TypeVar("AnySpec", bound=Spec)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def short_hash(content: Any) -> str:
    """Eight hexadecimal digits that identify a JSON-able value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn a full disk into one clear line.

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
            f"no room to write {path} ({os.strerror(error.errno or 0)}; {free:.0f} MiB free): "
            "free some space and start again, finished work is kept"
        ) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the disk is full; a file of that name stays as it was.
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
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is damaged, or there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError:
        raise UserError(f"{path}: not readable as JSON; remove it and start again") from None


def write_sealed(path: Path, content: bytes) -> None:
    """Write bytes behind their own digest, so that damage is seen when they are read."""
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> bytes:
    """Read what :func:`write_sealed` wrote.

    Raises:
        UserError: the file is truncated or bits have flipped.
    """
    whole = path.read_bytes()
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        raise UserError(f"{path}: damaged (truncated or bit-flipped); remove it and start again")
    return whole[32:]


@dataclass(frozen=True)
class Record:
    """``run.json``: what a finished run was made from, and what it left.

    Attributes:
        files: per file its ``sha256`` and ``bytes``.
        summary: figures that the stage reports.
        provenance: code, libraries, device and time.
    """

    id: str
    stage: str
    spec: Spec
    files: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    elapsed_seconds: float
    provenance: dict[str, Any]

    def spec_as(self, kind: type[AnySpec]) -> AnySpec:
        """The spec of a record whose stage is known.

        Raises:
            UserError: the record is of another stage.
        """
        if not isinstance(self.spec, kind):
            raise UserError(f"run {self.id} is of stage {self.stage}, not {kind.stage}")
        return self.spec


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        root: folder of all runs, ``results/runs``.
        stage: ``dataset``, ``classifier``, ``purifier``, ``attack``, ``purify`` or ``score``.
        id: readable slug and eight digits of the identity's hash.
    """

    root: Path
    stage: str
    id: str

    @property
    def path(self) -> Path:
        """Where the run's files lie."""
        return self.root / self.stage / self.id

    @property
    def record_path(self) -> Path:
        """``run.json``, there only when the run is whole."""
        return self.path / "run.json"

    @property
    def failure_path(self) -> Path:
        """``failure.json``, there when the last try ended in an error."""
        return self.path / "failure.json"

    def complete(self) -> bool:
        """Whether the run is finished."""
        return self.record_path.exists()

    def failure(self) -> str | None:
        """The error of the last try, if it failed."""
        return read_json(self.failure_path)["error"] if self.failure_path.exists() else None

    def fail(self, error: str) -> None:
        """Record a failed try."""
        write_json(self.failure_path, {"id": self.id, "stage": self.stage, "error": error})

    def finish(
        self,
        spec: Spec,
        files: list[str],
        summary: dict[str, Any],
        elapsed_seconds: float,
        provenance: dict[str, Any],
    ) -> None:
        """Write the record: from now on the run is whole."""
        listed = {
            name: {"sha256": sha256(self.path / name), "bytes": (self.path / name).stat().st_size}
            for name in files
        }
        write_json(
            self.record_path,
            {
                "id": self.id,
                "stage": self.stage,
                "spec": spec.to_json(),
                "files": listed,
                "summary": summary,
                "elapsed_seconds": round(elapsed_seconds, 3),
                "provenance": provenance,
            },
        )
        self.failure_path.unlink(missing_ok=True)

    def record(self, verify: bool = True) -> Record:
        """The run's record, after checking its files against it.

        Raises:
            UserError: the run is not there, belongs to another identity, or a file is damaged.
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
                    f"{file}: its bits are not those that were recorded; "
                    f"remove {self.path} and start again"
                )
        spec = read_spec(self.stage, content["spec"], f"{self.record_path}: spec")
        return Record(**{**content, "spec": spec})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, waiting for another process (an orphan, say) that still works in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
