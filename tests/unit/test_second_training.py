"""A second training starts from the run of the first, which all of them share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import PurifierSpec
from purifiers.plan.batches import gather
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import load_scale
from purifiers.stages.job import run_batch

ROOT = Path(__file__).resolve().parents[2]
ATOP = {
    **{"width": 4, "gan_weight": 0.0, "mse_weight": 1.0, "epochs": 1, "batch_size": 20},
    **{"fine_tune_epochs": 1, "fine_tune_batch_size": 20, "classification_after": 0.0},
}
IDFR = {
    **{"width": 4, "restorer_width": 8, "steps": 1, "epochs": 1, "batch_size": 20},
    **{"noise_rounds": 1, "restore_epochs": 1},
}
IMAGES = 60


def fit(runs_root: Path, run: str, spec: PurifierSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Do the fit, as a job does; its weights and its summary."""
    batch = {
        **{"stage": "purifier", "batch": run, "device": "cpu", "batch_size": 16},
        **{"checkpoint_seconds": 60.0},
        "runs": [{"id": run, "spec": spec.to_json(), "passes": 0, "size_bytes": 0}],
    }
    assert run_batch(batch, runs_root / f"{run}.json", runs_root, 1) == 0
    folder = RunFolder(runs_root, "purifier", run)
    return load_file(folder.path / "weights.safetensors"), folder.record().summary


@pytest.mark.parametrize(
    ("method", "parameters", "when"),
    [("atop", ATOP, "fine_tune"), ("idfr", IDFR, "restore")],
)
def test_two_runs_give_the_bits_of_one(
    untrained_runs: Path, method: str, parameters: dict[str, Any], when: str
) -> None:
    whole = PurifierSpec(
        data="digits",
        train=IMAGES,
        classifier="one",
        method=component_spec("method", method, {**parameters, when: True}),
        seed=0,
    )
    alone = component_spec("method", method, {**parameters, when: False})
    expected, at_once = fit(untrained_runs, "whole", whole)
    first, before = fit(untrained_runs, "first", dataclasses.replace(whole, method=alone))
    second = dataclasses.replace(whole, first="first")
    weights, after = fit(untrained_runs, "second", second)
    assert weights.keys() == expected.keys() >= first.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert any(
        name not in first or not torch.equal(first[name], value) for name, value in weights.items()
    )
    assert after["train_seconds"] > before["train_seconds"] > 0
    assert after["steps"] == at_once["steps"] == before["steps"]


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_the_plan_has_one_first_training(scale: str) -> None:
    plan = make_plan(ROOT, scale, ["atop/table_7", "atop/table_6"])
    fits = [run for run in plan.runs.values() if isinstance(run.spec, PurifierSpec)]
    by_id = {run.id: run for run in fits}
    tuned = [run for run in fits if run.spec.first]
    seeds = len(load_scale(ROOT, scale).declared["seeds"])
    data = len({run.spec.data for run in fits})  # CIFAR-10 and MNIST, or digits for both
    # RT1 to RT3 on the ResNet-18, and RT2 on the ResNet-50 for CIFAR-10
    assert len(tuned) == (3 * data + 1) * seeds
    assert len({run.spec.first for run in tuned}) == 2 * data * seeds  # RT2 and RT3 share theirs
    for run in tuned:
        first = by_id[run.spec.first]
        assert first.spec.classifier is None
        assert first.spec.method.parameters["fine_tune"] is False
        assert not {"eps", "fine_tune_epochs", "snapshots"} & first.spec.method.parameters.keys()
        assert run.spec.method.parameters["fine_tune"] is True
        assert all(count > 0 for count in run.cost.values())
    batches = gather(plan.runs.values(), load_scale(ROOT, scale), lambda run: run.passes)
    for run in tuned:
        own, other = batches[run.id], batches[run.spec.first]
        assert own == other or other in own.upstream
        if own == other:
            ids = [member.id for member in own.runs]
            assert ids.index(run.spec.first) < ids.index(run.id)
