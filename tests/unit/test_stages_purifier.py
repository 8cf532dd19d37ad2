"""Examples that a purifier is fitted on are made once, whatever interrupts the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import PurifierSpec
from purifiers.methods.hgd import Hgd
from purifiers.plan.graph import component_spec
from purifiers.stages.job import run_batch

BRIEF = {
    **{"variant": "dunet", "width": 2, "eps": 0.1, "steps": 1, "step_size": 0.1},
    **{"epochs": 3, "batch_size": 16},
}
IMAGES, BATCH = 60, 16


def job(run: str) -> dict[str, Any]:
    """The batch of one fit."""
    spec = PurifierSpec(
        data="digits",
        train=IMAGES,
        classifier="one",
        method=component_spec("method", "hgd", BRIEF),
        seed=0,
        ensemble=("two",),
    )
    return {
        **{"stage": "purifier", "batch": "fits", "device": "cpu", "batch_size": BATCH},
        **{"checkpoint_seconds": 0.0},
        "runs": [{"id": run, "spec": spec.to_json(), "passes": 0, "size_bytes": 0}],
    }


def fit(runs_root: Path, run: str) -> dict[str, Tensor]:
    """Do the fit, as a job does, and read its weights."""
    assert run_batch(job(run), runs_root / "done.json", runs_root, 1) == 0
    folder = RunFolder(runs_root, "purifier", run)
    assert folder.record().summary["steps"] == 12  # 54 images, 6 are held out
    return load_file(folder.path / "weights.safetensors")


def test_a_killed_fit_makes_no_example_twice(
    untrained_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(untrained_runs, "whole")
    calls = {"example": 0, "fit_loss": 0}
    fatal: dict[str, int] = {}

    def counted(name: str) -> Callable[..., Tensor]:
        own = getattr(Hgd, name)

        def call(method: Hgd, *given: Any) -> Tensor:
            if calls[name] == fatal.get(name):
                raise KeyboardInterrupt
            calls[name] += 1
            return own(method, *given)

        return call

    for name in calls:
        monkeypatch.setattr(Hgd, name, counted(name))
    examples = untrained_runs / "purifier" / "again" / "examples"
    for name, number in (("example", 3), ("example", 6), ("fit_loss", 5)):
        fatal = {name: number}
        with pytest.raises(KeyboardInterrupt):
            fit(untrained_runs, "again")
        assert examples.exists()
    fatal = {}
    again = fit(untrained_runs, "again")
    assert calls["example"] == 2 * math.ceil(IMAGES / BATCH)
    assert not examples.exists()
    for name, weights in whole.items():
        assert torch.equal(again[name], weights), name


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB")]
)
def test_too_little_memory_is_told_in_one_line(
    untrained_runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def failing(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(Hgd, "fit_loss", failing)
    assert run_batch(job("short"), untrained_runs / "done.json", untrained_runs, 1) == 1
    told = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" not in told
    (line,) = (line for line in told if line.startswith("error: "))
    assert line.startswith("error: purifier short: out of memory: run fewer jobs at once")
