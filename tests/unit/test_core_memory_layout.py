"""Networks that flatten with ``view`` train, purify and are attacked like those that reshape."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import purifiers
from purifiers.core import registry
from purifiers.core.component import Classifier, frozen
from purifiers.core.fitting import Workplace, fit_method, train
from purifiers.core.memory_layout import is_contiguous, lay_out, runs_channels_last
from purifiers.core.prepare import Prepared
from purifiers.core.recipe import Recipe
from purifiers.core.taps import tapped_features
from purifiers.training.natural import Natural

SMOKE = Path(__file__).resolve().parents[2] / "workflow/scales/smoke.yaml"
SHAPE, CLASSES = (3, 16, 16), 4
LAST = torch.channels_last
PIXELS = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (24, *SHAPE), np.uint8)
LABELS = np.arange(24) % CLASSES
IMAGES = torch.from_numpy(PIXELS[:6]).float() / 255


class Small(Classifier):
    """Two convolutions; a subclass flattens."""

    TAPS = ("conv1", "conv2")

    def __init__(self, shape: Sequence[int] = SHAPE, classes: int = CLASSES) -> None:
        super().__init__(shape, classes)
        torch.manual_seed(0)
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU())
        self.head = nn.Linear(512, classes)

    def flat(self, hidden: Tensor) -> Tensor:
        return hidden.reshape(hidden.size(0), -1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.flat(self.conv2(self.conv1(images))))

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        first = self.conv1(images)
        outputs = {"conv1": first, "conv2": self.conv2(first)}
        self.flat(outputs["conv2"])
        return [outputs[tap] for tap in taps]


class Viewing(Small):
    """As most tutorials flatten."""

    def flat(self, hidden: Tensor) -> Tensor:
        return hidden.view(hidden.size(0), -1)


class Branching(Viewing):
    """Cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        assert float(images.sum()) >= 0.0
        return super().forward(images)


def test_only_what_needs_it_is_contiguous():
    reshaping, viewing = Small(), Viewing()
    lay_out(reshaping, SHAPE)
    lay_out(viewing, SHAPE)
    assert not is_contiguous(reshaping) and is_contiguous(viewing)
    assert reshaping.conv2[0].weight.is_contiguous(memory_format=LAST)
    assert viewing.conv2[0].weight.is_contiguous()
    images = IMAGES.contiguous(memory_format=LAST)
    torch.testing.assert_close(viewing(images), reshaping(images))
    again = copy.deepcopy(viewing)
    lay_out(again, SHAPE)
    assert len(again._forward_pre_hooks) == 1
    assert torch.equal(again(images), viewing(images))


def test_a_probe_leaves_no_trace():
    network = Small().train()
    network.to(memory_format=LAST)
    kept, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert runs_channels_last(network, IMAGES)
    assert network.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def trained(network: Small, folder) -> Tensor:
    lay_out(network, SHAPE)
    training = Natural(epochs=1, batch_size=8)

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        return training.loss(network, images, labels, indices, seed)

    place = Workplace(folder, "run", "train", "cpu", 8, 60.0, quiet=True)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05, validation=0.2)
    train(network, loss, PIXELS, LABELS, recipe, 0, place)
    return network.eval()(IMAGES)


def test_a_viewing_network_is_trained_like_a_reshaping_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = trained(Small(), tmp_path / "a")
    torch.testing.assert_close(trained(Viewing(), tmp_path / "b"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("viewing", [Viewing, Branching])
def test_a_viewing_network_is_prepared(viewing):
    classifier = frozen(viewing())
    prepared = Prepared(classifier)
    torch.testing.assert_close(prepared(IMAGES), classifier(IMAGES), rtol=1e-4, atol=1e-4)
    assert prepared.fallback == ""
    laid_out = frozen(viewing())
    lay_out(laid_out, SHAPE)
    torch.testing.assert_close(Prepared(laid_out)(IMAGES), classifier(IMAGES), rtol=1e-4, atol=1e-4)
    if viewing is Viewing:
        half = Prepared(classifier, "bfloat16")
        assert half(IMAGES.contiguous(memory_format=LAST)).shape == (6, CLASSES)
        assert half.fallback == "" and half.exact is not None
        torch.testing.assert_close(half.exact(IMAGES), classifier(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_viewing_network_is_tapped():
    network = frozen(Viewing())
    lay_out(network, SHAPE)
    images = IMAGES.contiguous(memory_format=LAST)
    for taps in (("conv1", "conv2"), ("conv1.0", "conv2")):
        own = tapped_features(network, images, taps)
        expected = tapped_features(frozen(Small()), IMAGES, taps)
        for output, other in zip(own, expected, strict=True):
            torch.testing.assert_close(output, other)


@pytest.mark.parametrize("name", registry.names("method"))
def test_a_viewing_network_behind_every_method(name, tmp_path):
    """Fitted where it is fitted, and attacked through the method; all on the public path."""
    small = {
        **{"epochs": 0.01, "batch_size": 8, "width": 8, "blocks": 1, "channels": 8, "filters": 4},
        **{"steps": 1, "attack_steps": 1, "train_steps": 1, "taps": ("conv1", "conv2")},
        **{
            "generator_iterations": 1,
            "score_iterations": 1,
            "latent": 4,
            "restarts": 1,
            "scales": 1,
            "mixtures": 1,
        },
    }
    traits = registry.method_traits(name)
    known = registry.describe("method", name).parameters
    budgets = yaml.safe_load(SMOKE.read_text())["budgets"]
    budget = {n: v for n, v in budgets.get(f"method.{name}", {}).items() if type(v) is not dict}
    parameters = budget | {key: value for key, value in small.items() if key in known}
    classifier = frozen(Viewing())
    method = purifiers.method(name, **parameters)
    method.bind(classifier, SHAPE)
    if traits.fit is not None:
        place = Workplace(tmp_path, "run", "fit", "cpu", 8, 60.0, quiet=True)
        fit_method(method, [classifier], PIXELS, LABELS, 0, place)
    frozen(method)
    gradient = "exact" if traits.differentiable else "bpda"
    defence = purifiers.defend(classifier, [method], gradient=gradient)
    images, labels = IMAGES[:2], torch.from_numpy(LABELS[:2])
    attacked = classifier if traits.batch_dependent else defence
    adversarial = purifiers.attack("pgd", steps=1)(attacked, images, labels)
    assert adversarial.shape == images.shape
    assert torch.isfinite(defence(adversarial)).all()


@pytest.mark.parametrize(
    "name", ["apgd", "cw_l2", "deepfool_l2", "square", "spsa", "stadv", "pgd_l2"]
)
def test_a_viewing_network_is_attacked(name):
    """In the layout of the suite's own runs, and as its user calls it."""
    short = {"steps": 1, "queries": 5, "samples": 2, "search_steps": 1}
    known = registry.describe("attack", name).parameters
    attack = purifiers.attack(name, **{k: v for k, v in short.items() if k in known})
    labels = torch.from_numpy(LABELS[:6])
    laid_out = frozen(Viewing())
    lay_out(laid_out, SHAPE)
    for network, images in (
        (frozen(Viewing()), IMAGES),
        (laid_out, IMAGES.contiguous(memory_format=LAST)),
    ):
        assert attack(network, images, labels).shape == images.shape
