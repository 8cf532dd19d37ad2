"""TENT: its steps by hand, its batches, and every attack that must not meet it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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
from purifiers.core.spec import ImagesSpec, MethodSpec, PredictSpec, ScoreSpec, Subset
from purifiers.methods.tent import Adapting, Tent, entropy
from purifiers.plan.graph import component_spec
from purifiers.stages import predict, score
from purifiers.stages._context import Context, Outcome


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


def by_hand(classifier: nn.Module, images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Logits under the statistics of the batch."""
    convolution, norm, head = classifier[0], classifier[1], classifier[5]
    maps = convolution(images)
    mean = maps.mean(dim=(0, 2, 3), keepdim=True)
    variance = maps.var(dim=(0, 2, 3), keepdim=True, correction=0)
    normal = (maps - mean) / (variance + norm.eps).sqrt()
    hidden = normal * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    return head(hidden.relu().flatten(1))


def own_pair(classifier: nn.Module) -> list[Tensor]:
    return [p.detach().clone().requires_grad_(True) for p in classifier[1].parameters()]


def gradients_by_hand(classifier: nn.Module, images: Tensor, pair: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(entropy(by_hand(classifier, images, *pair)).mean(), pair))


def adam_by_hand(pair: list[Tensor], history: list[list[Tensor]], rate: float) -> list[Tensor]:
    """The step after the gradients in ``history``, the last of them at ``pair``."""
    stepped, t = [], len(history)
    for values, *gradients in zip(pair, *history, strict=True):
        first = sum(0.1 * 0.9 ** (t - 1 - k) * g for k, g in enumerate(gradients))
        second = sum(0.001 * 0.999 ** (t - 1 - k) * g**2 for k, g in enumerate(gradients))
        root = (second / (1 - 0.999**t)).sqrt() + 1e-8
        stepped.append((values - rate * first / (1 - 0.9**t) / root).detach().requires_grad_(True))
    return stepped


def test_one_episodic_step_by_hand():
    classifier, images = network(), some_images(6)
    adapted = made(episodic=True, learning_rate=0.1).equipped(classifier)(images)
    pair = own_pair(classifier)
    gradients = gradients_by_hand(classifier, images, pair)
    # Adam's first step has the length of the learning rate
    stepped = [p - 0.1 * g / (g.abs() + 1e-8) for p, g in zip(pair, gradients, strict=True)]
    torch.testing.assert_close(adapted, by_hand(classifier, images, *stepped))
    assert entropy(adapted).mean() < entropy(by_hand(classifier, images, *pair)).mean()


def test_three_online_batches_by_hand():
    """Each batch is classified before its step, and starts where the batch before has ended."""
    classifier, images = network(), some_images(11)
    adapted = made(batch_size=4, learning_rate=0.1).equipped(classifier)(images)
    pair, history = own_pair(classifier), []
    for batch, logits in zip(images.split(4), adapted.split(4), strict=True):
        torch.testing.assert_close(logits, by_hand(classifier, batch, *pair))
        history.append(gradients_by_hand(classifier, batch, pair))
        pair = adam_by_hand(pair, history, 0.1)
    fresh = by_hand(classifier, images[4:8], *own_pair(classifier))
    assert not torch.allclose(adapted[4:8], fresh, atol=1e-2), "the second batch must differ"


def test_online_with_two_steps_classifies_before_the_last():
    classifier, images = network(), some_images(4)
    adapted = made(steps=2, learning_rate=0.1).equipped(classifier)(images)
    pair = own_pair(classifier)
    pair = adam_by_hand(pair, [gradients_by_hand(classifier, images, pair)], 0.1)
    torch.testing.assert_close(adapted, by_hand(classifier, images, *pair))


def test_online_calls_continue_and_equipping_starts_again():
    classifier, images = network(), some_images(10)
    before = copy.deepcopy(classifier.state_dict())
    method = made(batch_size=4, learning_rate=0.1)
    whole, adapting = method.equipped(classifier)(images), method.equipped(classifier)
    assert torch.equal(torch.cat([adapting(part) for part in images.split(4)]), whole)
    assert not torch.allclose(adapting(images), whole, atol=1e-3)
    assert torch.equal(method.equipped(classifier)(images), whole)
    first, second, last = images.split(4)
    exchanged = method.equipped(classifier)(torch.cat([second, first, last]))
    assert not torch.allclose(exchanged[:4], whole[4:8], atol=1e-3), "the order matters"
    after = classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_each_episodic_batch_starts_from_the_classifiers_own_weights():
    classifier, images = network(), some_images(10)
    before = copy.deepcopy(classifier.state_dict())
    adapting = made(episodic=True, batch_size=4, steps=3).equipped(classifier)
    logits = adapting(images)
    assert torch.equal(adapting(images), logits)
    parts = torch.cat([adapting(part) for part in images.split(4)])
    assert torch.equal(parts, logits)
    assert not torch.allclose(adapting(images[1:5]), logits[1:5], atol=1e-4)
    after = classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_works_in_inference_mode():
    images, method = some_images(10), made(batch_size=4)
    inside, outside = method.equipped(network()), method.equipped(network())
    with torch.inference_mode():
        logits = inside(images)
    torch.testing.assert_close(logits.clone(), outside(images))


def test_the_images_stay_as_they_are():
    images = some_images(3)
    assert torch.equal(made().purify(images, 5), images)


def tent(**parameters: Any) -> MethodSpec:
    described = component_spec("method", "tent", {"batch_size": 10, **parameters})
    return MethodSpec(**vars(described), run=None)


IMAGES = ImagesSpec(data="digits", subset=Subset(split="test", n=25, seed=0), run=None)
SCORE = ScoreSpec(images=IMAGES, classifier="one", attack=None, restorers=(tent(),))


def run_score(runs_root: Path, name: str, batch_size: int = 7) -> tuple[Outcome, pd.DataFrame]:
    folder = RunFolder(runs_root, "score", name)
    folder.path.mkdir(parents=True, exist_ok=True)
    outcome = score.run(folder, SCORE, Context(runs_root, "cpu", 1, batch_size, 60.0))
    return outcome, pd.read_parquet(folder.path / "scores.parquet")


def test_a_scale_does_not_change_the_batches(
    untrained_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch size of a scale, 25 images are scored by 10, 10 and 5."""
    sizes, own = [], Adapting._logits

    def counted(network: Adapting, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return own(network, images)

    monkeypatch.setattr(Adapting, "_logits", counted)
    by_7, by_25 = (run_score(untrained_runs, f"by {size}", size) for size in (7, 25))
    assert sizes == [10, 10, 5] * 2
    assert by_7[1].equals(by_25[1])
    assert by_7[0].summary["batch_size"] == 10
    assert by_7[0].summary["batch_order"] == "ascending index"
    assert by_7[1]["index"].is_monotonic_increasing


def test_a_kill_between_two_batches_changes_no_bit(
    untrained_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed run starts again: the adapted weights of its first batch are lost."""
    logged: list[Tensor] = []
    own = Adapting._logits

    def logits(network: Adapting, images: Tensor) -> Tensor:
        if len(logged) == kill_at:
            raise KeyboardInterrupt
        logged.append(own(network, images))
        return logged[-1]

    monkeypatch.setattr(Adapting, "_logits", logits)
    kill_at = -1
    _, undisturbed = run_score(untrained_runs, "undisturbed")
    expected = torch.cat(logged)
    logged.clear()
    kill_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_score(untrained_runs, "killed")
    logged.clear()
    kill_at = -1
    _, rows = run_score(untrained_runs, "killed")
    assert rows.equals(undisturbed)
    assert torch.equal(torch.cat(logged), expected)


def test_each_draw_adapts_for_itself(untrained_runs: Path) -> None:
    """Two draws of one run are the draws of two runs."""
    context = Context(untrained_runs, "cpu", 1, 7, 60.0)
    noise = MethodSpec(**vars(component_spec("method", "random_sign", {"eps": 0.1})), run=None)
    both = PredictSpec(
        images=IMAGES,
        classifier="one",
        methods=(noise, tent(learning_rate=0.1)),
        first_draw=0,
        draws=2,
        seed=5,
    )
    first = dataclasses.replace(both, draws=1)
    logits = []
    for number, spec in enumerate((both, first, dataclasses.replace(first, first_draw=1))):
        folder = RunFolder(untrained_runs, "predict", f"run {number}")
        folder.path.mkdir(parents=True)
        summary = predict.run(folder, spec, context).summary
        assert (summary["batch_size"], summary["batch_order"]) == (10, "ascending index")
        logits.append(np.load(folder.path / "logits.npy"))
    assert np.array_equal(logits[0], np.concatenate(logits[1:], axis=1))


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
    for name, value in {"batch_size": 1, "steps": 0, "learning_rate": 0, "episodic": 1}.items():
        with pytest.raises(UserError, match=rf"^m: {name} is {value}, but takes [^\n]*$"):
            described.checked(name, value, "m")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="Sequential has no batch normalisation to adapt: choose"):
        Tent().bind(frozen(plain), (1, 8, 8))
