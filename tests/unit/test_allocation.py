"""What a cluster has allocated is used, or the job ends with one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from purifiers.__main__ import main
from purifiers.core.allocation import SLURM_JOB, VISIBLE, this_process, visible_gpus
from purifiers.core.artifacts import RunFolder, RunHeld
from purifiers.core.errors import UserError
from purifiers.stages.job import choose_device


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A torch without usable CUDA, on a machine whose driver is 550.1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(VISIBLE, raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in -L) echo "GPU 0: NVIDIA H200";; *) echo 550.1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_an_error(no_cuda: Any, device: str) -> None:
    with pytest.raises(UserError) as on_a_workstation:
        choose_device(device)
    assert "GPU 0 was given" in str(on_a_workstation.value)
    no_cuda.setenv(VISIBLE, "3")
    no_cuda.setenv(SLURM_JOB, "41")
    with pytest.raises(UserError) as error:
        choose_device(device)
    line = str(error.value)
    for part in ("GPU 3 ", "Slurm job 41 on ", torch.__version__, "driver 550.1", "`device: cpu`"):
        assert part in line, part


@pytest.mark.parametrize("nothing", ["", "-1", "NoDevFiles"])
def test_without_a_gpu_auto_is_the_processor(no_cuda: Any, nothing: str) -> None:
    no_cuda.setenv(VISIBLE, nothing)
    assert visible_gpus() == [] and choose_device("auto") == "cpu"
    with pytest.raises(UserError, match="no CUDA device is available"):
        choose_device("cuda")


def test_cpu_never_looks_for_a_gpu(no_cuda: Any) -> None:
    no_cuda.setenv(VISIBLE, "3")
    assert choose_device("cpu") == "cpu"


def _hold(folder: RunFolder, held: Any, job: str) -> None:
    os.environ[SLURM_JOB] = job
    with folder.lock():
        held.set()
        time.sleep(60)


def test_a_held_run_names_its_holder(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A cluster's job does not wait, and leaves no failure in the folder."""
    root = tmp_path / "runs"
    folder = RunFolder(root, "attack", "toy-1")
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(folder, held, "41"))
    other.start()
    try:
        assert held.wait(10)
        with pytest.raises(RunHeld, match=r"Slurm job 41 on \S+ executes this run already"):
            folder.lock(wait=False).__enter__()
        spec = root / "batches" / "attack" / "attack-1.spec.json"
        spec.parent.mkdir(parents=True)
        batch = {"stage": "attack", "batch": "attack-1", "device": "cpu", "runs": [{"id": "toy-1"}]}
        spec.write_text(json.dumps(batch))
        monkeypatch.setenv(SLURM_JOB, "42")
        assert main(["run", str(spec), str(tmp_path / "done.json")]) == 2
        assert "toy-1: Slurm job 41 on " in capsys.readouterr().err
    finally:
        other.kill()
        other.join(10)
    assert folder.failure() is None
    with folder.lock(wait=False):
        assert (folder.path / ".lock").read_text() == this_process()
