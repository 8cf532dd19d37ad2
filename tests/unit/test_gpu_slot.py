"""Jobs beside each other take one GPU each."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from purifiers.core import artifacts
from purifiers.core.allocation import VISIBLE, visible_gpus
from purifiers.core.errors import UserError
from purifiers.core.gpu_slot import claim_gpu


def test_every_job_takes_a_free_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for _ in range(2):
        monkeypatch.setenv(VISIBLE, "3, GPU-ab")
        lock = claim_gpu(tmp_path)
        assert lock is not None
        taken.append((os.environ[VISIBLE], lock))
    assert [name for name, _ in taken] == ["3", "GPU-ab"]
    monkeypatch.setenv(VISIBLE, "3,GPU-ab")
    release = threading.Timer(0.2, taken[1][1].close)
    release.start()
    third = claim_gpu(tmp_path, wait=0.02)  # waits until one is free
    assert third is not None and os.environ[VISIBLE] == "GPU-ab"
    for lock in (taken[0][1], third):
        lock.close()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, as for the folder of a run."""

    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(artifacts.fcntl, "flock", refuse)
    monkeypatch.setenv(VISIBLE, "0,1")
    with pytest.raises(UserError, match="no file locks"):
        claim_gpu(tmp_path)


@pytest.mark.parametrize("visible", ["", "2"])
def test_the_choice_of_a_scheduler_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv(VISIBLE, visible)
    assert claim_gpu(tmp_path / "gpus") is None
    assert os.environ[VISIBLE] == visible and not (tmp_path / "gpus").exists()


def test_all_gpus_are_visible_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200'\necho 'GPU 1: NVIDIA H200'\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
