"""TENT: one step by hand, its batches, and every attack that must not meet it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.evaluation import attacked_defence
from purifiers.core.spec import ImagesSpec, MethodSpec, ScoreSpec, Subset
from purifiers.methods.tent import Adapting, Tent, entropy
from purifiers.plan.graph import component_spec
from purifiers.stages import score
from purifiers.stages._context import Context


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(3 * 36, 4),
    )  # fmt: skip
    with torch.no_grad():
        layers[1].running_mean.fill_(0.3)
        layers[1].weight.uniform_(0.5, 1.5)
    return frozen(layers)


def some_images(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def made(**parameters: Any) -> Tent:
    method = Tent(**parameters)
    method.bind(network(), (1, 8, 8))
    return method


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, torch.tensor(3.0).log()]])
    expected = torch.tensor([0.6931472, 0.5623351])  # log 2; of (1/4, 3/4)
    torch.testing.assert_close(entropy(logits), expected)


def test_one_step_by_hand():
    classifier, images = network(), some_images(6)
    adapted = made(learning_rate=0.1).equipped(classifier)(images)
    convolution, norm, head = classifier[0], classifier[1], classifier[5]
    maps = convolution(images)
    mean = maps.mean(dim=(0, 2, 3), keepdim=True)
    variance = maps.var(dim=(0, 2, 3), keepdim=True, correction=0)
    normal = (maps - mean) / (variance + norm.eps).sqrt()

    def logits(scale: Tensor, shift: Tensor) -> Tensor:
        hidden = normal * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return head(hidden.relu().flatten(1))

    pair = [p.detach().clone().requires_grad_(True) for p in (norm.weight, norm.bias)]
    gradients = torch.autograd.grad(entropy(logits(*pair)).mean(), pair)
    # Adam's first step has the length of the learning rate
    stepped = [p - 0.1 * g / (g.abs() + 1e-8) for p, g in zip(pair, gradients, strict=True)]
    torch.testing.assert_close(adapted, logits(*stepped))
    assert entropy(adapted).mean() < entropy(logits(*pair)).mean()


def test_each_batch_starts_from_the_classifiers_own_weights():
    classifier, images = network(), some_images(10)
    before = copy.deepcopy(classifier.state_dict())
    adapting = made(batch_size=4, steps=3).equipped(classifier)
    logits = adapting(images)
    assert torch.equal(adapting(images), logits)
    parts = torch.cat([adapting(part) for part in images.split(4)])
    assert torch.equal(parts, logits)
    assert not torch.allclose(adapting(images[1:5]), logits[1:5], atol=1e-4)
    after = classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_works_in_inference_mode():
    adapting, images = made().equipped(network()), some_images(4)
    with torch.inference_mode():
        inside = adapting(images)
    torch.testing.assert_close(inside.clone(), adapting(images))


def test_the_images_stay_as_they_are():
    images = some_images(3)
    assert torch.equal(made().purify(images, 5), images)


def test_a_scale_does_not_change_the_batches(
    untrained_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch size of a scale, 25 images are scored by 10, 10 and 5."""
    sizes, own = [], Adapting._logits

    def counted(network: Adapting, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return own(network, images)

    monkeypatch.setattr(Adapting, "_logits", counted)
    described = component_spec("method", "tent", {"batch_size": 10})
    method = MethodSpec(**vars(described), run=None)
    subset = Subset(split="test", n=25, seed=0)
    images = ImagesSpec(data="digits", subset=subset, run=None)
    spec = ScoreSpec(images=images, classifier="one", attack=None, restorers=(method,))
    counts = []
    for batch_size in (7, 25):
        context = Context(untrained_runs, "cpu", 1, batch_size, 60.0)
        folder = RunFolder(untrained_runs, "score", f"by {batch_size}")
        folder.path.mkdir(parents=True)
        counts.append(score.run(folder, spec, context).summary["n_correct"])
    assert sizes == [10, 10, 5] * 2
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["pgd", "square"])
def test_no_attack_meets_it(name):
    classifier, images = network(), some_images(4)
    defence = attacked_defence(classifier, [made()], 0)
    assert defence.batch_dependent
    attack = purifiers.attack(name, **{"steps" if name == "pgd" else "queries": 1})
    with pytest.raises(UserError, match="adapts its classifier to each batch of queries: attack"):
        attack(defence, images, torch.zeros(4, dtype=torch.int64))
    attack(Defence(classifier), images, torch.zeros(4, dtype=torch.int64))


def test_no_gradient_passes_it():
    with pytest.raises(UserError, match="has no gradient: attack the classifier without tent"):
        made().equipped(network())(some_images(2).requires_grad_(True))


def test_wrong_values_are_refused_in_one_line():
    described = registry.describe("method", "tent")
    for name, value in {"batch_size": 1, "steps": 0, "learning_rate": 0}.items():
        with pytest.raises(UserError, match=rf"^m: {name} is {value}, but takes a "):
            described.checked(name, value, "m")
    with pytest.raises(UserError, match=r"episodic is False, .* set episodic to True"):
        Tent(episodic=False)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="Sequential has no batch normalisation to adapt: choose"):
        Tent().bind(frozen(plain), (1, 8, 8))
