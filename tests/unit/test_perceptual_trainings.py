"""Trainings of Laidlaw et al. and the coreset's: losses by hand, bounds, kill and resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.component import Attack, Classifier
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import TrainingImages, to_float
from purifiers.training._base import Training
from purifiers.training.adv_craig import AdvCraig
from purifiers.training.madry_all import MadryAll
from purifiers.training.madry_l2 import MadryL2
from purifiers.training.madry_stadv import MadryStadv
from purifiers.training.pat_self import PatSelf

COUNT, EPOCHS = 24, 4
PIXELS = np.random.RandomState(0).randint(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
LABELS = np.arange(COUNT, dtype=np.int64) % 3


class Net(Classifier):
    """A convolution with batch normalisation, tapped, and a linear layer."""

    TAPS = ("block",)

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 3)
        self.block = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(36, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(images).flatten(1))

    def features(self, images, taps):
        return [self.block(images)]


def network() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().train()


def batch(count: int = COUNT) -> tuple[Tensor, Tensor, Tensor]:
    return to_float(PIXELS[:count]), torch.from_numpy(LABELS[:count]), torch.arange(count)


class Shift(Attack):
    """Adds a constant."""

    def __init__(self, by: float) -> None:
        self.by = by

    def perturb(self, target, images, labels, seed, indices):
        return (images + self.by).clamp(0.0, 1.0)


class Sum(Classifier):
    """Logits (w sum x, 0), w = 1."""

    def __init__(self) -> None:
        super().__init__((1, 1, 1), 2)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        score = self.weight * images.flatten(1).sum(dim=1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)


# one batch


@pytest.mark.parametrize("steps", [3, 10])
def test_l2_examples_stay_in_the_ball_and_reach_its_boundary(steps):
    training = MadryL2(radius=0.5, steps=steps)
    adversarial = training.adversarial(network(), *batch(), 0)
    length = (adversarial - batch()[0]).flatten(1).norm(dim=1)
    assert length.max() <= 0.5 + 1e-5 and length.median() > 0.4
    assert training.attack.step_length == pytest.approx(0.5 / steps**0.5)


def test_spatial_examples_only_move_pixels():
    """A flow changes no flat image away from its border, where black is mixed in."""
    training = MadryStadv(steps=4)
    images, labels, indices = batch()
    flat = torch.full_like(images, 0.5)
    adversarial = training.adversarial(network(), flat, labels, indices, 0)
    inner = (adversarial - flat)[:, :, 1:-1, 1:-1]
    assert inner.abs().max() < 1e-6
    assert not torch.equal(training.adversarial(network(), images, labels, indices, 0), images)
    assert training.attack.smoothness == pytest.approx(0.05)


def test_mixtures_by_hand():
    """Scores .2, .3 and .5 of an image of label 0, after shifts by 0, .1 and .3."""
    images, labels = torch.tensor([0.2, 0.4]).view(2, 1, 1, 1), torch.tensor([0, 1])
    scores = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.5, 0.7]])
    losses = torch.stack([torch.log1p((-scores[0]).exp()), torch.log1p(scores[1].exp())])
    expected = {"average": losses.mean(), "maximum": (losses[0, 0] + losses[1, 2]) / 2}
    for mixture, value in expected.items():
        training = MadryAll(mixture=mixture)
        training.attacks = tuple(Shift(by) for by in (0.0, 0.1, 0.3))
        loss = training.loss(Sum().train(), images, labels, torch.arange(2), 0)
        torch.testing.assert_close(loss, value)
    training = MadryAll(mixture="random")
    training.attacks = tuple(Shift(by) for by in (0.0, 0.1, 0.3))
    means = losses.mean(dim=0)
    drawn = {
        int((means - training.loss(Sum(), images, labels, torch.arange(2), seed)).abs().argmin())
        for seed in range(12)
    }
    assert drawn == {0, 1, 2}
    with pytest.raises(UserError, match="mixture is 'sum': choose"):
        MadryAll(mixture="sum")


def test_the_mixture_has_the_three_balls():
    training = MadryAll(eps=0.1, radius=0.4, bound=0.2, steps=4)
    linf, l2, _ = (a for a in training.attacks)
    images, labels, indices = batch()
    by_attack = [
        training.examples(a, network(), images, labels, indices, 0) - images for a in (linf, l2)
    ]
    assert by_attack[0].abs().max() <= 0.1 + 1e-6
    assert by_attack[1].flatten(1).norm(dim=1).max() <= 0.4 + 1e-5
    assert (linf.step_size, l2.step_length) == (0.05, 0.2)


def test_misclassified_images_stay_clean():
    images, labels, indices = batch()
    net = network().eval()
    wrong = net(images).argmax(dim=1) != labels
    assert 0 < wrong.sum() < COUNT
    adversarial = PatSelf(steps=3).adversarial(net, images, labels, indices, 0)
    assert torch.equal(adversarial[wrong], images[wrong])
    assert ((adversarial - images)[~wrong].flatten(1).abs().amax(dim=1) > 0).all()
    everything = PatSelf(steps=3, only_correct=False).adversarial(net, images, labels, indices, 0)
    assert ((everything - images).flatten(1).abs().amax(dim=1) > 0).all()
    torch.testing.assert_close(everything[~wrong], adversarial[~wrong])


def test_pat_is_cross_entropy_on_the_examples():
    net, (images, labels, indices) = network(), batch()
    training = PatSelf(steps=3)
    adversarial = training.adversarial(net, images, labels, indices, 7)
    expected = functional.cross_entropy(network()(adversarial), labels)
    torch.testing.assert_close(training.loss(net, images, labels, indices, 7), expected)


def test_weighted_loss_by_hand():
    """Images 4 and 9 weigh 3 and 1; one that was not chosen would weigh 1."""
    training = AdvCraig(eps=0.0, steps=1)
    training.chosen = torch.tensor([4, 9]), torch.tensor([3.0, 1.0])
    images, labels = torch.tensor([0.2, 0.4]).view(2, 1, 1, 1), torch.tensor([0, 0])
    first, second = (float(torch.log1p(torch.tensor(-x).exp())) for x in (0.2, 0.4))
    loss = training.loss(Sum().train(), images, labels, torch.tensor([4, 9]), 0)
    assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)
    loss = training.loss(Sum().train(), images, labels, torch.tensor([4, 20]), 0)
    assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)


# schedule


def test_the_rate_warms_up_and_drops():
    recipe = PatSelf().recipe
    rates = [recipe.rate(step, 1000) for step in (0, 24, 49, 50, 749, 750, 899, 900)]
    assert rates == pytest.approx([0.002, 0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (100, 50, 2e-4)


@pytest.mark.parametrize(("clip", "moved"), [(0.0, 30.0), (1.0, 1.0)])
def test_each_entry_of_a_gradient_is_clipped(tmp_path: Path, clip, moved):
    module = nn.Linear(1, 1, bias=False)
    before = float(module.weight.detach())
    recipe = Recipe(epochs=1, batch_size=COUNT, learning_rate=1.0, clip_value=clip)

    def loss(images, labels, indices, seed):
        return -30.0 * module.weight.sum()

    fit(module, loss, PIXELS, LABELS, recipe, 0, tmp_path / "c", "run", "test", quiet=True)
    assert float(module.weight.detach()) - before == pytest.approx(moved, rel=1e-5)


# coreset


def test_each_class_keeps_its_share_and_the_weights_count_all_images():
    training = AdvCraig(steps=2, select_every=2, batch_size=7)
    coreset = training.coreset(network())
    data, rows = TrainingImages(PIXELS, LABELS, "cpu"), torch.arange(0, COUNT)[:-3]
    chosen, weights = coreset.choose(data, rows, 2, seed=5)
    assert len(chosen) == coreset.size(len(rows)) == 10
    assert torch.equal(chosen, chosen.unique()) and set(chosen.tolist()) <= set(rows.tolist())
    assert np.bincount(LABELS[chosen]).tolist() == [4, 3, 3]
    assert weights.sum() == len(rows) and weights.min() >= 1 and weights.max() > 1
    again = coreset.choose(data, rows, 2, seed=5)
    assert torch.equal(again[0], chosen) and torch.equal(again[1], weights)
    first, ones = coreset.choose(data, rows, 0, seed=5)
    assert len(first) == 10 and torch.equal(ones, torch.ones(10))
    assert [epoch for epoch in range(5) if coreset.due(epoch)] == [0, 2, 4]


def test_gradients_are_those_of_the_adversarial_images():
    """softmax(f(x')) - onehot(y), against automatic differentiation."""
    net, training = network(), AdvCraig(steps=2)
    coreset = training.coreset(net)
    data, rows = TrainingImages(PIXELS, LABELS, "cpu"), torch.arange(COUNT)
    gradients, labels = coreset._gradients(data, rows, 3)
    adversarial = training.adversarial(net, *batch(), 3)
    logits = net.eval()(adversarial).detach().requires_grad_(True)
    functional.cross_entropy(logits, labels, reduction="sum").backward()
    torch.testing.assert_close(gradients, logits.grad)


def test_an_objective_or_fraction_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="objective is 'trades': choose"):
        AdvCraig(objective="trades")
    with pytest.raises(UserError, match=r"fraction is 0.0, but takes a number in \(0, 1\]"):
        AdvCraig(fraction=0.0)


# kill and resume


class Killed(Exception):
    pass


def trained(folder: Path, training: Training, kill_at: int | None = None) -> tuple[Net, list]:
    """The network after the training, and the rows of each step until a kill."""
    net, steps = network(), []

    def loss(images, labels, indices, seed):
        if len(steps) == kill_at:
            raise Killed
        steps.append(indices.tolist())
        return training.loss(net, images, labels, indices, seed)

    recipe = replace(training.recipe, checkpoint_seconds=0.0)
    coreset = training.coreset(net)
    try:
        fit(
            net, loss, PIXELS, LABELS, recipe, 4, folder / "checkpoint", "run", "test",
            quiet=True, coreset=coreset,
        )  # fmt: skip
    except Killed:
        assert kill_at is not None
    return net, steps


TRAININGS = {
    "adv_craig": lambda: AdvCraig(steps=2, select_every=2, epochs=EPOCHS, batch_size=5),
    "adv_craig_lpa": lambda: AdvCraig(
        objective="fast_lpa", steps=2, select_every=2, epochs=EPOCHS, batch_size=5
    ),
    "pat_self": lambda: PatSelf(steps=2, epochs=2, batch_size=7),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, name):
    make = TRAININGS[name]
    whole, steps = trained(tmp_path / "whole", make())
    for kill in (1, len(steps) // 2, len(steps) // 2 + 1, len(steps) - 1):
        folder = tmp_path / str(kill)
        _, before = trained(folder, make(), kill)
        resumed, after = trained(folder, make())  # a fresh component, as in a new process
        assert before + after == steps
        for value, expected in zip(
            resumed.state_dict().values(), whole.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected)


def test_a_coreset_is_trained_on_for_its_period(tmp_path: Path):
    """Half of the images per epoch, the same ones for two epochs, then others."""
    training = TRAININGS["adv_craig"]()
    _, steps = trained(tmp_path, training)
    per_epoch = [[*a, *b, *c] for a, b, c in zip(*[iter(steps)] * 3, strict=True)]
    assert [len(rows) for rows in per_epoch] == [COUNT // 2] * EPOCHS
    first, second, third, fourth = (set(rows) for rows in per_epoch)
    assert first == second and third == fourth and first != third
    assert per_epoch[0] != per_epoch[1]
    rows, weights = training.chosen
    assert set(rows.tolist()) == fourth and weights.sum() == COUNT and weights.max() > 1
