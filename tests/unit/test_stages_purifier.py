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
from purifiers.methods.hgd import Hgd
from purifiers.plan.runs import component
from purifiers.stages import dataset
from purifiers.stages._context import Context, new_classifier, open_data, save_weights
from purifiers.stages.job import run_batch

NETWORK = component(
    "classifier", "wide_resnet", {"depth": 10, "widen_factor": 1, "first_stride": 2}
)
BRIEF = {"width": 2, "eps": 0.1, "steps": 1, "step_size": 0.1, "epochs": 3, "batch_size": 16}
IMAGES, BATCH = 60, 16


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    """A runs folder with the data set ``digits`` and two untrained classifiers."""
    context = Context(tmp_path, "cpu", 1, BATCH, 60.0)
    spec: dict[str, Any] = {"dataset": component("dataset", "digits", {})}
    folder = folder_of(tmp_path, "dataset", "digits")
    outcome = dataset.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        folder = folder_of(tmp_path, "classifier", name)
        save_weights(new_classifier(NETWORK, open_data(context, "digits")), folder)
        told = {"data": "digits", "classifier": NETWORK}
        folder.finish(told, ["weights.safetensors"], {}, 0.0, {})
    return tmp_path


def folder_of(runs_root: Path, stage: str, run: str) -> RunFolder:
    folder = RunFolder(runs_root, stage, run)
    folder.path.mkdir(parents=True)
    return folder


def fit(runs_root: Path, run: str) -> dict[str, Tensor]:
    """Do the fit, as a job does, and read its weights."""
    spec = {
        **{"data": "digits", "train": IMAGES, "seed": 0, "classifier": "one", "ensemble": ["two"]},
        "method": component("method", "hgd", BRIEF),
    }
    batch = {
        **{"stage": "purifier", "batch": "fits", "device": "cpu", "batch_size": BATCH},
        **{"checkpoint_seconds": 0.0},
        "runs": [{"id": run, "spec": spec, "passes": 0, "size_bytes": 0}],
    }
    assert run_batch(batch, runs_root / "done.json", runs_root, 1) == 0
    return load_file(runs_root / "purifier" / run / "weights.safetensors")


def test_a_killed_fit_makes_no_example_twice(
    runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(runs_root, "whole")
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
    examples = runs_root / "purifier" / "again" / "examples"
    for name, number in (("example", 3), ("example", 6), ("fit_loss", 5)):
        fatal = {name: number}
        with pytest.raises(KeyboardInterrupt):
            fit(runs_root, "again")
        assert examples.exists()
    fatal = {}
    again = fit(runs_root, "again")
    assert calls["example"] == 2 * math.ceil(IMAGES / BATCH)
    assert not examples.exists()
    for name, weights in whole.items():
        assert torch.equal(again[name], weights), name
