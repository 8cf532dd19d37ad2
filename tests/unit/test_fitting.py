"""Fitting from Python is the fit of the stage, and leaves everything else alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import fitting
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import PurifierSpec, Subset
from purifiers.plan.graph import component_spec
from purifiers.stages._context import Context
from purifiers.stages._opening import open_data
from purifiers.stages.job import run_batch

IMAGES = 48
COMMON = {"epochs": 2, "batch_size": 16}
METHODS: dict[str, dict[str, Any]] = {
    "aid": {"taps": ["stage2"], "width": 4, "train_steps": 1, **COMMON},
    "hgd": {
        **{"variant": "dunet", "width": 2, "eps": 0.1, "steps": 1, "step_size": 0.1},
        **{"early_stopping": 0, **COMMON},
    },
    "magnet": {"width": 2, **COMMON},
}


def training_set(runs_root: Path) -> tuple[Tensor, Tensor]:
    data = open_data(Context(runs_root, "cpu", 1, 16, 60.0), "digits")
    rows = data.indices(Subset(split="train", n=IMAGES, seed=0))
    return torch.from_numpy(data.images["train"][rows]), torch.from_numpy(
        data.labels["train"][rows]
    )


def run_stage(runs_root: Path, name: str, run: str, seed: int = 0) -> RunFolder:
    """Fit as a job does."""
    spec = PurifierSpec(
        data="digits",
        train=IMAGES,
        classifier="one",
        method=component_spec("method", name, METHODS[name]),
        seed=seed,
    )
    batch = {
        **{"stage": "purifier", "batch": "fits", "device": "cpu"},
        **{"checkpoint_seconds": 0.0, "batch_size": fitting.BATCH_SIZE},
        "runs": [{"id": run, "spec": spec.to_json(), "passes": 0, "size_bytes": 0}],
    }
    assert run_batch(batch, runs_root / "done.json", runs_root, 1) == 0
    return RunFolder(runs_root, "purifier", run)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equal_weights_to_the_bit(untrained_runs: Path, name: str, dtype: torch.dtype) -> None:
    folder = run_stage(untrained_runs, name, "stage", seed=3)
    staged = purifiers.load_method(folder.path)
    classifier = purifiers.load_classifier("one", runs=untrained_runs)
    images, labels = training_set(untrained_runs)
    given = images if dtype == torch.uint8 else images.float() / 255
    torch.manual_seed(99)  # of no influence, as is the mode
    classifier.train().requires_grad_(True)
    method = purifiers.method(name, **METHODS[name])
    assert purifiers.fit(method, classifier, given, labels, seed=3, progress=False) is method
    assert all(part.training for part in classifier.modules())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    classifier.eval()
    state, expected = method.state_dict(), staged.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    other = purifiers.fit(
        purifiers.method(name, **METHODS[name]), classifier, given, labels, seed=4, progress=False
    )
    assert any(not torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert torch.equal(method.purify(given[:4].float()), staged.purify(given[:4].float()))


def test_any_module_is_fitted_on_and_stays_as_it_was(
    untrained_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = training_set(untrained_runs)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network.append(nn.Linear(4, 10))
    network[0].requires_grad_(False)
    network[2].eval()
    before = copy.deepcopy(network.state_dict())
    modes = [part.training for part in network.modules()]
    random = torch.random.get_rng_state()
    method = purifiers.method("hgd", **METHODS["hgd"])
    purifiers.fit(method, network, images, labels, progress=False)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [part.training for part in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == [False] * 2 + [True] * 4
    assert not method.training and not any(p.requires_grad for p in method.parameters())
    assert method.stored_examples == ()
    assert capsys.readouterr().err == ""
    defended = purifiers.defend(network.eval(), [method])
    assert defended(images[:4].float() / 255).shape == (4, 10)


def test_progress_is_printed(
    untrained_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init = fitting.loop.Progress.__init__

    def eager(self: Any, *given: Any, **named: Any) -> None:
        init(self, *given, **named, interval=0.0)

    monkeypatch.setattr(fitting.loop.Progress, "__init__", eager)
    images, labels = training_set(untrained_runs)
    method = purifiers.method("magnet", **METHODS["magnet"])
    purifiers.fit(method, nn.Flatten(), images, labels)
    assert "fit Magnet: 1/" in capsys.readouterr().err


NET, PIXELS = nn.Flatten(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((purifiers.method("random_sign"), NET, PIXELS, LABELS), "RandomSign is not fitted"),
        ((NET, NET, PIXELS, LABELS), "method is a Flatten: create one with purifiers.method"),
        ((purifiers.method("hgd"), None, PIXELS, LABELS), "is fitted on a classifier: pass one"),
        ((purifiers.method("hgd"), NET, PIXELS, LABELS[:2]), "4 images but labels of shape"),
        ((purifiers.method("hgd"), NET, PIXELS[:0], LABELS[:0]), "no images; give at least one"),
        ((purifiers.method("hgd"), NET, PIXELS, LABELS.float()), r"use labels.long"),
        ((purifiers.method("hgd"), NET, PIXELS[0], LABELS), "must be NCHW"),
        ((purifiers.method("hgd"), NET, PIXELS.double(), LABELS), "float32 NCHW"),
        ((purifiers.method("hgd"), NET, PIXELS + 2.0, LABELS), r"must lie in \[0, 1\]"),
        ((purifiers.method("hgd"), NET, PIXELS, LABELS, 0, "cuda:99"), "is not available"),
    ],
)
def test_refusals(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"^fit: .*{message}") as caught:
        purifiers.fit(*given)
    assert "\n" not in str(caught.value)


def test_examples_are_in_the_range_of_images(untrained_runs: Path) -> None:
    """The stored examples are adversarial ones of exactly the training images."""
    images, labels = training_set(untrained_runs)
    classifier = purifiers.load_classifier("one", runs=untrained_runs)
    method = purifiers.method("hgd", **METHODS["hgd"])
    seen: list[np.ndarray] = []
    own = type(method).fit_loss

    def spying(self: Any, *batch: Any) -> Tensor:
        seen[:] = [np.array(part) for part in self.stored_examples]
        return own(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "fit_loss", spying)
        purifiers.fit(method, classifier, images, labels, progress=False)
    (examples,) = seen
    distance = np.abs(examples - images.numpy() / np.float32(255)).max()
    assert examples.shape == images.shape and 0.05 < distance <= 0.1 + 1e-6
