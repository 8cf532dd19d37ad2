"""Every component file, found as the registry finds it, and a small trained network to try it on.

A test that takes ``attack``, ``classifier``, ``dataset``, ``method`` or ``training`` runs once
per file of that folder, its ``_template.py`` included; ``component`` runs over all of them. Unit
tests hold what is left out: recipes that train nothing, attacks that replace the images of one data
set, and classifiers that always bring their weights, which fit one shape of images.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.component import Classifier, Method, build, frozen
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.datasets.digits import Digits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SMOKE = yaml.safe_load((ROOT / "workflow/scales/smoke.yaml").read_text())["budgets"]

# What makes a test small; where a component has a parameter of the name.
MOST_STEPS = 12
MOST_QUERIES = 100  # random search needs more answers than gradients to break anything
FITTED_ON = 384  # images
RESTORING_EPOCHS = 10  # of a second phase, whose inputs are embeddings
FILES = {
    "classifier.file": {"path": str(HERE / "network.py"), "taps": ("0", "3")},
    "classifier.robustbench": {"entry": "Wong2020Fast"},
}
"""Parameters of components that read files."""
EASIER = {
    "attack.spsa": {"steps": 8, "samples": 24},
    "attack.square": {"queries": MOST_QUERIES},
    "method.adv_ae": {"steps": 3, "step_size": 0.05},
    "method.comdefend": {"sigma": 2.0, "width": 8, "learning_rate": 0.01},
}
"""Parameters with which a component learns, or breaks something, in a few steps."""
LENGTHS = {"eps": 0.1, "step_size": 0.025, "learning_rate": 0.1}


@dataclass(frozen=True)
class Component:
    """One component file."""

    kind: str
    name: str

    @property
    def description(self) -> registry.Description:
        """What the file says of itself."""
        path = ROOT / "purifiers" / registry.FOLDERS[self.kind] / f"{self.name}.py"
        return registry.describe_file(self.kind, self.name, path)

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"purifiers.{registry.FOLDERS[self.kind]}.{self.name}")

    @property
    def cls(self) -> Any:
        return getattr(self.module, registry.class_name(self.name))

    @property
    def small(self) -> dict[str, Any]:
        """The smoke scale's budget; an attack gets few and long steps, and a large ball; what reads
        files gets those of the tests."""
        budget = SMOKE.get(f"{self.kind}.{self.name}", {})
        chosen = {n: v["at_most"] if isinstance(v, dict) else v for n, v in budget.items()}
        if self.kind == "attack":
            described = self.description
            default = {n: described.parameters[n] for n in described.traits.budget} | chosen
            chosen = {
                n: min(v, MOST_QUERIES if n == "queries" else MOST_STEPS)
                for n, v in default.items()
                if type(v) is int
            }
            chosen |= {n: v for n, v in LENGTHS.items() if n in described.parameters}
        key = f"{self.kind}.{self.name}"
        return chosen | FILES.get(key, {}) | EASIER.get(key, {})

    def make(self, *context: Any, **parameters: Any) -> Any:
        """The component at its small size."""
        return build(self.cls, *context, **(self.small | parameters))


def components(kind: str) -> list[Component]:
    return [Component(kind, name) for name in (*registry.names(kind), "_template")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for kind in registry.KINDS:
        if kind in metafunc.fixturenames:
            found = components(kind)
            if kind == "training":
                found = [c for c in found if not c.description.traits.keeps_weights]
            if kind == "attack":
                traits = [c.description.traits for c in found]
                found = [
                    c for c, t in zip(found, traits, strict=True) if not (t.images_of or t.files)
                ]
            if kind == "classifier":
                found = [c for c in found if c.description.traits.pretrained is not True]
            metafunc.parametrize(kind, found, ids=[c.name for c in found], scope="module")
    if "component" in metafunc.fixturenames:
        found = [component for kind in registry.KINDS for component in components(kind)]
        metafunc.parametrize("component", found, ids=[f"{c.kind}-{c.name}" for c in found])


@dataclass(frozen=True)
class Attackable:
    """A model that also has what some attacks go against: a detector, a score and layers."""

    model: Any

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images)

    def detector_logit(self, images: Tensor) -> Tensor:
        """High for images of much contrast."""
        return (images - 0.5).square().flatten(1).mean(dim=1)

    def score(self, images: Tensor) -> Tensor:
        """Of a normal density around grey."""
        return 0.5 - images

    def activations(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """One layer of one position, whose channels are the pixels."""
        return [images.flatten(1)[:, :, None, None]]


@dataclass(frozen=True, repr=False)
class Victim:
    """A small wide residual network trained on digits, frozen, with digits it has not seen.

    Attributes:
        images: float32 (24, 1, 16, 16).
        pixels: training images, uint8 (n, 1, 16, 16); ``targets`` are their labels.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor
    pixels: np.ndarray
    targets: np.ndarray
    double: nn.Module

    indices = torch.arange(300, 324)

    @property
    def logits(self) -> Attackable:
        """In double precision, so that rounding, which depends on the batch, flips no sign."""
        return Attackable(lambda images: self.double(images.double()).float())

    def accuracy(self, images: Tensor) -> float:
        with torch.no_grad():
            return float((self.classifier(images).argmax(dim=1) == self.labels).float().mean())


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    data = Digits()
    pixels, targets = data.load("train", ROOT)
    images, labels = data.load("test", ROOT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Component("classifier", "wide_resnet").make(data.shape, data.classes)
        natural = Component("training", "natural").make(epochs=6)

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            return natural.loss(classifier, images, labels, indices, seed)

        checkpoint = tmp_path_factory.mktemp("victim") / "checkpoint"
        fit(classifier, loss, pixels, targets, natural.recipe, 0, checkpoint, "victim", "victim")
    frozen(classifier).zero_grad(set_to_none=True)
    return Victim(
        classifier,
        torch.from_numpy(images[:24]).float() / 255,
        torch.from_numpy(labels[:24]),
        pixels,
        targets,
        copy.deepcopy(classifier).double(),
    )


@dataclass(frozen=True)
class Fitting:
    """Trains a few steps, enough to see that it works and no more."""

    folder: Path

    def __call__(
        self,
        module: nn.Module,
        loss: Any,
        recipe: Recipe,
        victim: Victim,
        epochs: int = 2,
        images: int = FITTED_ON,
    ) -> None:
        short = replace(recipe, epochs=epochs, batch_size=64, checkpoint_seconds=1e9)
        pixels, targets = victim.pixels[:images], victim.targets[:images]
        checkpoint = self.folder / "checkpoint"
        with torch.random.fork_rng(devices=[]):
            fit(module, loss, pixels, targets, short, 0, checkpoint, "short", "short")


@pytest.fixture(scope="session")
def fit_briefly(tmp_path_factory: pytest.TempPathFactory) -> Fitting:
    return Fitting(tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="session")
def attackable() -> type[Attackable]:
    """A plain model with what some attacks go against."""
    return Attackable


@pytest.fixture(scope="session")
def ready(victim: Victim, fit_briefly: Fitting) -> Any:
    """``ready(component)``: a purifier bound to the victim, fitted briefly if it has to be."""
    made: dict[str, Method] = {}

    def get(component: Component) -> Method:
        if component.name not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                method = component.make()
                method.bind(victim.classifier, victim.classifier.shape)
            if method.traits.fit is not None:
                method.fit_on([victim.classifier], FITTED_ON)
                fit_briefly(method.train(), method.fit_loss, method.recipe, victim)
                pixels, targets = victim.pixels[:FITTED_ON], victim.targets[:FITTED_ON]
                phase = method.next_phase(pixels, targets)
                if phase is not None:
                    data = replace(victim, pixels=phase.inputs, targets=phase.labels)
                    part, rows = phase.part.train(), len(phase.inputs)
                    fit_briefly(part, phase.loss, phase.recipe, data, RESTORING_EPOCHS, rows)
                method.end_fit()
            made[component.name] = frozen(method)
        return made[component.name]

    return get


def _load_golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("renew_golden", HERE / "renew_golden.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """The module ``renew_golden.py``."""
    return _load_golden()
