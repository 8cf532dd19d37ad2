"""Training survives a kill: the same bits come out."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.core import loop
from purifiers.core.errors import UserError
from purifiers.core.loop import Recipe, fit, to_float

COUNT, BATCH = 22, 5  # the last batch of an epoch is short
RECIPE = Recipe(
    epochs=3, batch_size=BATCH, learning_rate=0.1, momentum=0.9, weight_decay=1e-3,
    milestones=(0.5,), augmentation="crop_flip", checkpoint_seconds=0.0,
)  # fmt: skip
STEPS = 15
PIXELS = np.random.RandomState(0).randint(0, 256, (COUNT, 1, 6, 6), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


class Killed(Exception):
    pass


class Loss:
    """Cross entropy that raises at a step, and a log of the batches."""

    def __init__(self, module: nn.Module, kill_at: int | None = None) -> None:
        self.module, self.kill_at = module, kill_at
        self.batches: list[list[int]] = []
        self.seeds: list[int] = []

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if len(self.batches) == self.kill_at:
            raise Killed
        assert torch.equal(labels, torch.from_numpy(LABELS)[indices])
        self.batches.append(indices.tolist())
        self.seeds.append(seed)
        return F.cross_entropy(self.module(images), labels)


def train(folder: Path, module: nn.Module, loss: Any = None, **changes: Any) -> dict[str, Any]:
    recipe = replace(RECIPE, **{k: v for k, v in changes.items() if k != "identity"})
    identity = changes.get("identity", "run-1")
    loss = loss or Loss(module)
    return fit(module, loss, PIXELS, LABELS, recipe, 4, folder / "checkpoint", identity, "test")


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    module = network()
    return module, train(tmp_path_factory.mktemp("whole"), module)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kill_at", [1, 4, 5, 7, 14])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, undisturbed, kill_at, optimizer):
    whole, summary = undisturbed
    if optimizer == "adam":
        whole = network()
        summary = train(tmp_path / "adam", whole, optimizer="adam", learning_rate=0.01)
    settings = {"optimizer": optimizer, "learning_rate": 0.1 if optimizer == "sgd" else 0.01}
    module = network()
    with pytest.raises(Killed):
        train(tmp_path, module, Loss(module, kill_at), **settings)
    torch.manual_seed(99)  # another process: nothing but the checkpoint is left
    again = network().double().float()
    loss = Loss(again)
    assert train(tmp_path, again, loss, **settings) == summary
    assert len(loss.batches) == STEPS - kill_at
    assert same(again, whole)


def test_killed_twice(tmp_path, undisturbed):
    whole, summary = undisturbed
    for kill_at in (3, 2):
        module = network()
        with pytest.raises(Killed):
            train(tmp_path, module, Loss(module, kill_at))
    module = network()
    loss = Loss(module)
    assert train(tmp_path, module, loss) == summary
    assert len(loss.batches) == STEPS - 5 and same(module, whole)


def test_without_a_checkpoint_it_starts_anew(tmp_path, undisturbed):
    module = network()
    with pytest.raises(Killed):
        train(tmp_path, module, Loss(module, 7), checkpoint_seconds=1e9)
    assert list(tmp_path.iterdir()) == []
    again = network()
    train(tmp_path, again, checkpoint_seconds=1e9)
    assert same(again, undisturbed[0])


@pytest.fixture
def checkpoint(tmp_path):
    module = network()
    with pytest.raises(Killed):
        train(tmp_path, module, Loss(module, 7))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused(checkpoint, damage):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    spoiled = {"truncated": content[:-100], "flipped": content, "empty": b""}[damage]
    checkpoint.write_bytes(spoiled)
    module = network()
    with pytest.raises(UserError, match=r"checkpoint: damaged .*remove it"):
        train(checkpoint.parent, module)
    assert same(module, network())


def test_a_checkpoint_of_another_run_is_refused(checkpoint):
    module = network()
    with pytest.raises(UserError, match="belongs to run 'run-1', not 'run-2'"):
        train(checkpoint.parent, module, identity="run-2")
    assert same(module, network())


def test_a_checkpoint_holds_no_code(checkpoint, monkeypatch):
    """It is read with weights_only, so that a foreign file cannot run anything."""
    asked: list[Any] = []
    load = torch.load

    def watched(*arguments, **options):
        asked.append(options.get("weights_only"))
        return load(*arguments, **options)

    monkeypatch.setattr(loop.torch, "load", watched)
    train(checkpoint.parent, network())
    assert asked == [True]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(tmp_path, value):
    module = network()
    loss = Loss(module)

    def broken(*arguments):
        return loss(*arguments) * (value if len(loss.batches) == 4 else 1.0)

    with pytest.raises(RuntimeError, match=r"test: the loss became (nan|inf) at step 4 of 15"):
        train(tmp_path, module, broken)
    assert len(loss.batches) == 4


def test_every_image_once_per_epoch_in_a_new_order(tmp_path):
    module = network()
    loss = Loss(module)
    summary = train(tmp_path, module, loss)
    assert summary["steps"] == len(loss.batches) == STEPS
    assert [len(batch) for batch in loss.batches] == [5, 5, 5, 5, 2] * 3
    epochs = [loss.batches[start : start + 5] for start in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(COUNT))
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(set(loss.seeds)) == STEPS


@pytest.mark.parametrize(("epochs", "steps"), [(0.2, 1), (0.01, 1), (1, 5), (1.5, 8), (2, 10)])
def test_epochs_need_not_be_whole(tmp_path, epochs, steps):
    module = network()
    loss = Loss(module)
    assert train(tmp_path, module, loss, epochs=epochs)["steps"] == steps == len(loss.batches)


def test_the_seed_decides(tmp_path, undisturbed):
    module = network()
    fit(module, Loss(module), PIXELS, LABELS, RECIPE, 5, tmp_path / "checkpoint", "x", "x")
    assert not same(module, undisturbed[0])


def test_one_step_by_hand(tmp_path):
    """SGD with weight decay: w - rate (gradient + decay w); the first momentum is the gradient."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = copy.deepcopy(module)
    train(tmp_path, module, epochs=0.2, batch_size=COUNT, augmentation="none")
    F.cross_entropy(before(to_float(PIXELS)), torch.from_numpy(LABELS)).backward()
    for new, old in zip(module.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * (old.grad + 1e-3 * old))


def test_final_loss_is_that_of_the_last_tenth(tmp_path):
    values = iter(range(1, 21))
    module = nn.Linear(1, 1)

    def loss(images, labels, indices, seed):
        return module.weight.sum() * 0 + next(values)

    assert train(tmp_path, module, loss, epochs=4)["final_loss"] == pytest.approx((19 + 20) / 2)


def test_what_is_frozen_stays(tmp_path):
    module = network()
    module[0].requires_grad_(False)
    kept = module[0].weight.clone()
    train(tmp_path, module)
    assert torch.equal(module[0].weight, kept)


def test_pixels_to_float():
    images = to_float(np.array([[[[0, 51, 255]]]], dtype=np.uint8))
    torch.testing.assert_close(images, torch.tensor([[[[0.0, 0.2, 1.0]]]]))
    given = np.array([[[[0.3]]]], dtype=np.float32)
    assert to_float(given).item() == pytest.approx(0.3)
