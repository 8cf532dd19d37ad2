"""A small trained network that the unit tests attack, and plans of papers of the tests' own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import ClassifierSpec, DatasetSpec
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import Plan, make_plan
from purifiers.stages import dataset
from purifiers.stages._context import Context, save_weights
from purifiers.stages._opening import new_classifier, open_data

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Victim:
    """A classifier of 8x8 digits in evaluation mode, with held-out images it mostly gets right."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    def accuracy(self, images: Tensor) -> float:
        return float(self.correct(images).float().mean())

    def correct(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(images).argmax(dim=1) == self.labels


@pytest.fixture
def images() -> Tensor:
    """Six random images of the shape of ``toys.Toy``, float32 (6, 1, 8, 8)."""
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def victim() -> Victim:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            for rows in torch.randperm(1500).split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    return Victim(model, images[1500:1564], labels[1500:1564])


@pytest.fixture
def toy_plan(tmp_path: Path) -> Callable[..., Plan]:
    """``toy_plan(paper, defaults, rows, columns)``: the plan of one table with one block; rows and
    columns are cells by their ids. The paper knows the data set ``digits`` and adds its recipes."""
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    shutil.copy(ROOT / "tests/workflow/tiny.yaml", tmp_path / "workflow/scales")
    folder = tmp_path / "benchmarks" / "toy"
    folder.mkdir(parents=True)

    declared: dict[str, Any] = {"id": "toy", "title": "A paper of the tests' own"}
    declared |= {"seed_document": "none", "settings": {"digits": {}}}

    def entries(cells: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": name, "cell": cell} for name, cell in cells.items()]

    def plan(
        paper: Mapping[str, Any],
        defaults: Mapping[str, Any],
        rows: Mapping[str, dict[str, Any]],
        columns: Mapping[str, dict[str, Any]],
    ) -> Plan:
        (folder / "paper.yaml").write_text(yaml.safe_dump(declared | dict(paper)))
        table = {
            "table": "1",
            "title": "A table of the tests' own",
            "where": "nowhere",
            "defaults": defaults,
            "rows": entries(rows),
            "columns": entries(columns),
            "blocks": [{"id": "block"}],
        }
        (folder / "table_1.yaml").write_text(yaml.safe_dump(table))
        return make_plan(tmp_path, "tiny", ["toy/table_1"])

    return plan


@pytest.fixture
def untrained_runs(tmp_path: Path) -> Path:
    """A runs folder with the data set ``digits`` and the untrained classifiers ``one``, ``two``."""
    context = Context(tmp_path / "runs", "cpu", 1, 16, 60.0)

    def folder_of(stage: str, run: str) -> RunFolder:
        folder = context.folder(stage, run)
        folder.path.mkdir(parents=True)
        return folder

    digits = DatasetSpec(dataset=component_spec("dataset", "digits", {}))
    folder = folder_of("dataset", "digits")
    outcome = dataset.run(folder, digits, context)
    folder.finish(digits, outcome.files, outcome.summary, 0.0, {})
    small = {"depth": 10, "widen_factor": 1, "first_stride": 2}
    for seed, name in enumerate(("one", "two")):
        spec = ClassifierSpec(
            data="digits",
            train=0,
            classifier=component_spec("classifier", "wide_resnet", small),
            training=component_spec("training", "natural", {"epochs": 0.01}),
            seed=seed,
        )
        folder = folder_of("classifier", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_weights(new_classifier(spec.classifier, open_data(context, "digits")), folder)
        folder.finish(spec, ["weights.safetensors"], {}, 0.0, {})
    return context.runs_root
