"""Training survives a kill: the same bits come out."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from purifiers.core import loop
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import TrainingImages, to_float

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
    told = fit(module, loss, PIXELS, LABELS, recipe, 4, folder / "checkpoint", identity, "test")
    assert told.pop("train_seconds") >= 0.0  # no two trainings take the same time
    return told


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


def test_a_long_gradient_is_scaled_down(tmp_path):
    """The gradient (3, 4) has norm 5; clipped to 1 it is (.6, .8)."""
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()

    def loss(images, labels, indices, seed):
        return (module.weight * torch.tensor([3.0, 4.0])).sum()

    train(tmp_path, module, loss, steps=1, gradient_clip=1.0, weight_decay=0.0)
    moved = before - module.weight.detach()
    torch.testing.assert_close(moved, torch.tensor([[0.06, 0.08]]), rtol=1e-4, atol=1e-6)


def test_the_rate_warms_up():
    rates = [replace(RECIPE, warm_up_steps=4).rate(step, 20) for step in range(20)]
    assert rates[:6] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[6:] == [RECIPE.rate(step, 20) for step in range(6, 20)]


def test_averaged_weights_by_hand(tmp_path):
    """Four steps of -1: weights 0, -1, -2, -3, -4; decays 2/11, 3/12 and 1/4 twice."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    trained: list[float] = []

    def loss(images, labels, indices, seed):
        trained.append(module.weight.item())
        return module.weight.sum() / 0.1

    train(
        tmp_path,
        module,
        loss,
        steps=4,
        averaging=0.25,
        weight_decay=0.0,
        momentum=0.0,
        milestones=(),
    )
    average = 0.0
    for weight, decay in zip((-1, -2, -3, -4), (2 / 11, 1 / 4, 1 / 4, 1 / 4), strict=True):
        average = decay * average + (1 - decay) * weight
    assert trained == pytest.approx([0.0, -1.0, -2.0, -3.0])
    assert float(module.weight) == pytest.approx(average)


@pytest.mark.parametrize("kill_at", [1, 7])
def test_the_average_survives_a_kill(tmp_path, kill_at):
    whole, module, again = network(), network(), network()
    summary = train(tmp_path / "whole", whole, averaging=0.5)
    with pytest.raises(Killed):
        train(tmp_path, module, Loss(module, kill_at), averaging=0.5)
    assert train(tmp_path, again, averaging=0.5) == summary
    assert same(again, whole) and not same(network(), whole)


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


# held-out images: plateaus, early stopping, the best epoch

PLATEAU: dict[str, Any] = {
    "schedule": "plateau", "validation": 0.3, "patience": 1, "learning_rate_decay": 0.5,
    "min_learning_rate": 0.03, "epochs": 9,
}  # fmt: skip
KEPT, HELD_OUT = 15, 7  # of 22; 3 steps and 2 held-out batches per epoch


class Watched(Loss):
    """Also keeps what was held out, and the rate of each step."""

    def __init__(self, module: nn.Module, kill_at: int | None = None) -> None:
        super().__init__(module, kill_at)
        self.held_out: list[tuple[list[int], int]] = []
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if self.module.training:
            assert torch.is_grad_enabled()
            return super().__call__(images, labels, indices, seed)
        if len(self.batches) == -(self.kill_at or 0):  # negative: killed within a validation
            raise Killed
        assert not torch.is_grad_enabled() and not any(m.training for m in self.module.modules())
        self.held_out.append((indices.tolist(), seed))
        self.images.append(images)
        return F.cross_entropy(self.module(images), labels)


class Scripted:
    """Losses of the held-out images as they are told, and the rates that they lead to."""

    def __init__(self, told: list[float]) -> None:
        self.module, self.told, self.epoch = network(), told, -1
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if self.module.training:
            return F.cross_entropy(self.module(images), labels)
        if len(indices) == BATCH:  # the first of two batches
            self.epoch += 1
            self.states.append(copy.deepcopy(self.module.state_dict()))
        return torch.tensor(self.told[self.epoch])


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    module = network()
    loss = Watched(module)
    return module, loss, train(tmp_path_factory.mktemp("steered"), module, loss, **PLATEAU)


def test_held_out_images_are_never_trained_on(steered):
    _, loss, _ = steered
    first, second = loss.held_out[:2]
    held_out = {*first[0], *second[0]}
    assert [len(first[0]), len(second[0])] == [5, 2] and len(held_out) == HELD_OUT
    trained = {row for batch in loss.batches for row in batch}
    assert trained == set(range(COUNT)) - held_out
    assert held_out != set(range(KEPT, COUNT))  # drawn, for data may be sorted by class
    for start in range(0, len(loss.held_out), 2):  # the same rows and noise after every epoch
        assert loss.held_out[start : start + 2] == [first, second]
    for rows, _ in (first, second):  # not augmented
        at = [seen for seen, _ in loss.held_out].index(rows)
        assert torch.equal(loss.images[at], to_float(PIXELS[rows]))


def test_other_seeds_hold_out_other_images(tmp_path):
    held_out = []
    for seed in (1, 2):
        module = network()
        loss = Watched(module)
        recipe = replace(RECIPE, epochs=1, validation=0.3)
        fit(module, loss, PIXELS, LABELS, recipe, seed, tmp_path / f"{seed}", "x", "x")
        held_out.append([rows for rows, _ in loss.held_out])
    assert held_out[0] != held_out[1]


def test_validation_is_the_mean_over_images_in_evaluation_mode(tmp_path):
    module = network()
    loss = Watched(module)
    summary = train(tmp_path, module, loss, epochs=1, validation=0.3)
    rows = [row for batch, _ in loss.held_out for row in batch]
    with torch.no_grad():
        logits = module.eval()(to_float(PIXELS[rows]))
    expected = F.cross_entropy(logits, torch.from_numpy(LABELS)[rows]).item()
    assert summary["validation_loss"] == pytest.approx(expected, abs=1e-6)
    assert summary["best_epoch"] == 1 and summary["steps"] == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kill_at", [1, 3, 4, 6, 13, -3, -6, -12])
def test_killed_between_plateaus_it_ends_with_the_same_bits(tmp_path, kill_at, optimizer):
    settings = {**PLATEAU, "early_stopping": 3, "optimizer": optimizer, "learning_rate": 0.1}
    whole = network()
    summary = train(tmp_path / "whole", whole, Watched(whole), **settings)
    assert summary["steps"] > 13
    module = network()
    with pytest.raises(Killed):
        train(tmp_path, module, Watched(module, kill_at), **settings)
    again = network()
    loss = Watched(again)
    assert train(tmp_path, again, loss, **settings) == summary
    # steps of an epoch whose validation did not end are saved but for the last
    done = kill_at if kill_at > 0 else -kill_at - 1
    assert len(loss.batches) == summary["steps"] - done
    assert same(again, whole)


def test_a_finished_training_stays_finished(tmp_path):
    """Killed after the last step of an early end, before anything else was written."""
    settings = {**PLATEAU, "early_stopping": 2, "epochs": 50}
    told = [1.0, 2.0, 3.0]
    first = Scripted(told)
    summary = train(tmp_path, first.module, first, **settings)
    assert summary["steps"] == 9
    again = Scripted(told)
    assert train(tmp_path, again.module, again, **settings) == summary
    assert again.epoch == -1 and same(again.module, first.module)


def test_plateaus_lower_the_rate(tmp_path, monkeypatch):
    told = [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5]
    rates: list[float] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    loss = Scripted(told)
    train(tmp_path, loss.module, loss, **{**PLATEAU, "patience": 2})
    by_epoch = [rates[start] for start in range(0, 27, 3)]
    # the loss 2.0 came again, which is no better: two epochs of waiting end with 2.5
    assert by_epoch == pytest.approx([0.1] * 4 + [0.05] * 3 + [0.03] * 2)
    assert rates == pytest.approx([rate for rate in by_epoch for _ in range(3)])


def test_the_best_epoch_is_kept(tmp_path):
    loss = Scripted([3.0, 1.0, 2.0, 1.0, 4.0])
    summary = train(tmp_path, loss.module, loss, epochs=5, validation=0.3)
    assert (summary["validation_loss"], summary["best_epoch"], summary["steps"]) == (1.0, 2, 15)
    final = loss.module.state_dict()
    assert all(torch.equal(final[name], value) for name, value in loss.states[1].items())
    assert not torch.equal(final["0.weight"], loss.states[4]["0.weight"])


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6), (3, 7), (9, 8), (0, 8)])
def test_early_stopping(tmp_path, patience, epochs):
    loss = Scripted([3.0, 2.0, 2.5, 1.0, 1.0, 1.0, 9.0, 0.5])
    summary = train(tmp_path, loss.module, loss, epochs=8, validation=0.3, early_stopping=patience)
    assert summary["steps"] == 3 * epochs == 3 * (loss.epoch + 1)


def test_final_loss_of_a_training_that_may_stop_is_its_last_epochs(tmp_path):
    module = nn.Linear(1, 1)
    values = iter(range(100))

    def loss(images, labels, indices, seed):
        return module.weight.sum() * 0 + (next(values) if module.training else 1.0)

    summary = train(tmp_path, module, loss, epochs=20, validation=0.3, early_stopping=2)
    assert summary["steps"] == 9 and summary["final_loss"] == pytest.approx((6 + 7 + 8) / 3)


def test_parts_return_to_their_mode(tmp_path):
    """A part that stays in evaluation mode, such as a frozen classifier, does so afterwards."""
    module = network()
    module.train()[1].eval()
    train(tmp_path, module, epochs=1, validation=0.3)
    assert [part.training for part in module] == [True, False, True, True, True, True]


def test_a_part_of_an_epoch_is_validated_too(tmp_path):
    module = network()
    loss = Watched(module)
    train(tmp_path, module, loss, epochs=1.4, validation=0.3)
    assert len(loss.batches) == 4 and len(loss.held_out) == 4


def test_a_validation_loss_that_is_not_finite_stops(tmp_path):
    loss = Scripted([1.0, float("nan")])
    with pytest.raises(RuntimeError, match="the validation loss became nan at step 6 of 9"):
        train(tmp_path, loss.module, loss, validation=0.3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"validation": 1.0}, r"^validation is 1.0, but takes a number in \[0, 1\)$"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"patience": 0}, "patience is 0"),
        ({"milestones": (0.5, 80)}, r"milestones is \(0.5, 80\), but takes a list, each a number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, but takes a number above 0"),
        ({"schedule": "plateau"}, "set validation"),
        ({"early_stopping": 3}, "set validation"),
        ({"averaging": 0.9, "validation": 0.2}, "averaging: .* set validation to 0"),
    ],
)
def test_recipes_that_make_no_sense(changes, told):
    with pytest.raises(UserError, match=told):
        replace(RECIPE, **changes)


def test_nothing_left_to_train_on(tmp_path):
    module = network()
    with pytest.raises(UserError, match="validation holds out 1 of 1 images"):
        recipe = replace(RECIPE, validation=0.1)
        fit(module, Loss(module), PIXELS[:1], LABELS[:1], recipe, 0, tmp_path / "c", "x", "x")


def test_pixels_to_float():
    images = to_float(np.array([[[[0, 51, 255]]]], dtype=np.uint8))
    torch.testing.assert_close(images, torch.tensor([[[[0.0, 0.2, 1.0]]]]))
    given = np.array([[[[0.3]]]], dtype=np.float32)
    assert to_float(given).item() == pytest.approx(0.3)


# games: parts of a module that are trained in turn

GAME: dict[str, Any] = {"turns": (("0", 2), ("1", 1)), "epochs": 1.8}  # 9 steps
TURNS = ["0", "0", "1"] * 3


class Played:
    """A loss that both parts change; keeps whose gradients were wanted, and the weights before."""

    def __init__(self, kill_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(36, 4), nn.Linear(4, 3))
        self.kill_at = kill_at
        self.wanted: list[list[bool]] = []
        self.states: list[dict[str, Tensor]] = []

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if len(self.wanted) == self.kill_at:
            raise Killed
        self.wanted.append([p.requires_grad for p in self.module.parameters()])
        self.states.append(copy.deepcopy(self.module.state_dict()))
        return F.cross_entropy(self.module(images.flatten(1)), labels)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_in_a_game_the_others_stay_as_they_are(tmp_path, optimizer):
    """Whatever their momentum and weight decay."""
    loss = Played()
    summary = train(tmp_path, loss.module, loss, optimizer=optimizer, **GAME)
    assert summary["steps"] == len(loss.wanted) == 9
    assert loss.wanted == [[t == "0", t == "0", t == "1", t == "1"] for t in TURNS]
    states = [*loss.states, loss.module.state_dict()]
    for turn, before, after in zip(TURNS, states[:-1], states[1:], strict=True):
        moved = {name[0] for name, value in before.items() if not torch.equal(value, after[name])}
        assert moved == {turn}
    assert all(parameter.requires_grad for parameter in loss.module.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 8])
def test_a_killed_game_ends_with_the_same_bits(tmp_path, kill_at, optimizer):
    whole = Played()
    summary = train(tmp_path / "whole", whole.module, whole, optimizer=optimizer, **GAME)
    killed = Played(kill_at)
    with pytest.raises(Killed):
        train(tmp_path, killed.module, killed, optimizer=optimizer, **GAME)
    assert all(parameter.requires_grad for parameter in killed.module.parameters())
    again = Played()
    assert train(tmp_path, again.module, again, optimizer=optimizer, **GAME) == summary
    assert len(again.wanted) == 9 - kill_at and same(again.module, whole.module)


def test_final_loss_of_a_game_is_the_first_parts(tmp_path):
    values = iter(range(1, 21))
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))

    def loss(images, labels, indices, seed):
        return sum(part.weight.sum() * 0 for part in module) + next(values)

    changes = {"turns": (("0", 2), ("1", 2)), "epochs": 4}  # of 20 steps the last cycle counts
    assert train(tmp_path, module, loss, **changes)["final_loss"] == pytest.approx((17 + 18) / 2)


def test_steps_instead_of_epochs(tmp_path):
    loss = Loss(module := network())
    assert train(tmp_path, module, loss, epochs=0, steps=7)["steps"] == 7 == len(loss.batches)


def test_betas_are_adams(tmp_path):
    """The first step is one learning rate long; in the second, momentum 0 forgets the first."""
    module = nn.Linear(1, 1, bias=False)
    slopes, values = iter([1.0, -1.0]), []

    def loss(images, labels, indices, seed):
        values.append(module.weight.item())
        return next(slopes) * module.weight.sum()

    changes = {"optimizer": "adam", "steps": 2, "betas": (0.0, 0.5), "weight_decay": 0.0}
    train(tmp_path, module, loss, milestones=(), **changes)
    values.append(module.weight.item())
    assert np.diff(values) == pytest.approx([-0.1, 0.1], rel=1e-4)


def test_a_game_holds_nothing_out():
    with pytest.raises(UserError, match="the losses of a game have no lowest"):
        replace(RECIPE, turns=(("0", 1),), validation=0.2)


@pytest.mark.parametrize("prepared", [0, 5])
def test_the_time_of_a_training_has_what_was_spent_before_a_kill(tmp_path, monkeypatch, prepared):
    """Every step takes a second of a clock that stands still between the starts. To prepare takes
    five, once; one kill comes right behind it."""
    now = 0.0
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))

    class Slow(Loss):
        def __call__(self, *batch: Any) -> Any:
            nonlocal now
            now += 1.0
            return super().__call__(*batch)

    def seconds(folder: Path, loss: Loss, every: float = 0.0) -> float:
        def prepare() -> None:
            nonlocal now
            now += 0.0 if (folder / "prepared").exists() else prepared
            folder.mkdir(exist_ok=True)
            (folder / "prepared").touch()

        recipe = replace(RECIPE, checkpoint_seconds=every)
        path = folder / "checkpoint"
        given = (loss.module, loss, PIXELS, LABELS, recipe, 4, path, "x", "x")
        return fit(*given, prepare=prepare)["train_seconds"]

    assert seconds(tmp_path / "whole", Slow(network())) == prepared + STEPS
    for after, every in ((0, 60.0), (6, 0.0)):
        with pytest.raises(Killed):
            seconds(tmp_path / "killed", Slow(network(), after), every)
        now += 1000.0
    assert seconds(tmp_path / "killed", Slow(network())) == prepared + STEPS


# on a device


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_resident_images_are_the_same(augmentation):
    rows = torch.tensor([1, 4, 5, 20])
    batches = [
        TrainingImages(PIXELS, LABELS, "cpu", resident).batch(rows) for resident in (False, True)
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours, theirs)
    images, labels = batches[0]
    torch.testing.assert_close(images, torch.from_numpy(PIXELS[rows.numpy()]).float() / 255)
    assert labels.tolist() == LABELS[rows.numpy()].tolist()


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_losses_read_late_are_the_same(tmp_path, undisturbed, monkeypatch, every):
    """Weights and summary do not depend on how often losses are read."""
    own = loop._Losses.__init__
    monkeypatch.setattr(loop._Losses, "__init__", lambda self, _: own(self, every))
    module = network()
    assert train(tmp_path, module) == undisturbed[1]
    assert same(module, undisturbed[0])


def test_a_loss_that_is_not_finite_is_found_late_but_named(tmp_path, monkeypatch):
    own = loop._Losses.__init__
    monkeypatch.setattr(loop._Losses, "__init__", lambda self, _: own(self, 4))
    module, steps = network(), []

    def loss(images, labels, indices, seed):
        steps.append(seed)
        return F.cross_entropy(module(images), labels) * (math.nan if len(steps) == 2 else 1.0)

    with pytest.raises(RuntimeError, match="the loss became nan at step 2 of 15"):
        train(tmp_path, module, loss, checkpoint_seconds=1e9)
    assert len(steps) == 4


def test_steps_read_nothing_from_the_device(tmp_path, monkeypatch):
    """With losses read rarely, the number of reads does not grow with the number of steps."""
    own = loop._Losses.__init__
    monkeypatch.setattr(loop._Losses, "__init__", lambda self, _: own(self, 1000))
    counts = []
    for epochs in (1, 1.8):  # 5 and 9 steps; the second has one more end of an epoch
        module = network()

        def loss(images, labels, indices, seed, module=module):
            return F.cross_entropy(module(images), labels)

        reads = Reads()
        to_list = torch.Tensor.tolist

        def counted(self, reads=reads, to_list=to_list):
            reads.count += 1
            return to_list(self)

        with monkeypatch.context() as patch, reads:
            patch.setattr(torch.Tensor, "tolist", counted)
            train(tmp_path / str(epochs), module, loss, epochs=epochs, checkpoint_seconds=1e9)
        counts.append(reads.count)
    assert counts[1] - counts[0] <= 3
