"""Training recipes against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.modes import attack_mode
from purifiers.core.noise import normal, uniform
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import augment
from purifiers.training.avmixup import Avmixup, smooth_label
from purifiers.training.madry import Madry
from purifiers.training.natural import Natural
from purifiers.training.trades import Trades, divergence


class Linear(Classifier):
    """Logits = W x, for hand calculations."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__((1, 1, weight.shape[1]), weight.shape[0])
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def network_with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


# natural


def test_natural_is_cross_entropy():
    """Logits (0, ln 3): probabilities 1/4 and 3/4."""
    classifier = Linear(torch.tensor([[0.0], [np.log(3.0)]], dtype=torch.float32))
    images, labels = torch.ones(2, 1, 1, 1), torch.tensor([0, 1])
    loss = Natural().loss(classifier, images, labels, torch.arange(2), 0)
    assert loss.item() == pytest.approx(-(np.log(0.25) + np.log(0.75)) / 2, rel=1e-6)


# TRADES


def test_divergence_by_hand():
    """p = (1/4, 3/4), q = (1/2, 1/2): KL = 1/4 ln 1/2 + 3/4 ln 3/2, and not its reverse."""
    p, q = torch.tensor([[0.0, np.log(3.0)]]), torch.zeros(1, 2)
    assert divergence(p, q).item() == pytest.approx(0.130812, abs=1e-6)
    assert divergence(q, p).item() == pytest.approx(0.143841, abs=1e-6)
    assert divergence(p, p).item() == pytest.approx(0.0, abs=1e-7)


def test_divergence_equals_numpy():
    draw = np.random.RandomState(0)
    clean, other = draw.normal(size=(5, 7)) * 3, draw.normal(size=(5, 7)) * 3
    p, q = softmax(clean), softmax(other)
    found = divergence(torch.from_numpy(clean), torch.from_numpy(other))
    np.testing.assert_allclose(found.numpy(), (p * np.log(p / q)).sum(axis=1), rtol=1e-10)


def test_trades_loss_by_hand(monkeypatch):
    """Cross entropy of the clean images plus beta times the mean divergence."""
    weight = torch.tensor([[1.0, -1.0], [0.0, 2.0], [0.5, 0.5]])
    images, labels = torch.tensor([[0.2, 0.9], [0.7, 0.1]]).view(2, 1, 1, 2), torch.tensor([1, 0])
    neighbours = torch.tensor([[0.4, 0.7], [0.5, 0.3]]).view(2, 1, 1, 2)
    monkeypatch.setattr(Trades, "neighbours", lambda *_: neighbours)
    found = Trades(beta=6.0).loss(Linear(weight), images, labels, torch.arange(2), 0)
    p = softmax(images.view(2, 2).numpy() @ weight.numpy().T)
    q = softmax(neighbours.view(2, 2).numpy() @ weight.numpy().T)
    natural = -np.log(p[[0, 1], [1, 0]]).mean()
    assert found.item() == pytest.approx(
        natural + 6.0 * (p * np.log(p / q)).sum(1).mean(), rel=1e-5
    )


def test_trades_neighbours_step_by_step():
    torch.manual_seed(0)
    weight = torch.randn(3, 6)
    images, indices = torch.rand(4, 1, 1, 6), torch.tensor([3, 8, 20, 21])
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the range binds too
    recipe = Trades(eps=0.05, steps=4, step_size=0.02)
    found = recipe.neighbours(Linear(weight), images, torch.zeros(4).long(), indices, seed=9)

    x = images.flatten(1).double()
    p = torch.softmax(x @ weight.T.double(), dim=1)
    moving = x + 0.001 * normal(9, indices, (1, 1, 6), tag="trades").flatten(1)
    for _ in range(4):
        q = torch.softmax(moving @ weight.T.double(), dim=1)
        gradient = (q - p) @ weight.double()  # of KL(p || softmax(W x')) in x'
        moving = moving + 0.02 * gradient.sign()
        moving = torch.minimum(torch.maximum(moving, x - 0.05), x + 0.05).clamp(0, 1)
    torch.testing.assert_close(found.flatten(1).double(), moving, atol=1e-6, rtol=0)
    clean = Linear(weight)(images)
    assert (divergence(clean, Linear(weight)(found)) > 1e-4).all()


def test_trades_gradient_reaches_both_terms():
    """The clean logits are not detached in the divergence."""
    torch.manual_seed(0)
    classifier, images = Linear(torch.randn(3, 4)), torch.rand(5, 1, 1, 4)
    labels, indices = torch.tensor([0, 1, 2, 0, 1]), torch.arange(5)
    recipe = Trades(beta=2.0, eps=0.2, steps=2, step_size=0.1)
    recipe.loss(classifier, images, labels, indices, 0).backward()
    weight = classifier.weight.detach().clone().requires_grad_(True)
    near = recipe.neighbours(Linear(weight.detach()), images, labels, indices, 0)
    log_p = F.log_softmax(images.flatten(1) @ weight.T, dim=1)
    log_q = F.log_softmax(near.flatten(1) @ weight.T, dim=1)
    divergences = (log_p.exp() * (log_p - log_q)).sum(1)
    (F.nll_loss(log_p, labels) + 2.0 * divergences.mean()).backward()
    torch.testing.assert_close(classifier.weight.grad, weight.grad, atol=1e-6, rtol=1e-5)


# AVmixup


def test_avmixup_mixes_by_hand():
    """Vertex .5 + 2 * .1 = .7; that of the second pixel, 1.1, is clipped."""
    images = torch.tensor([0.5, 0.9]).view(1, 1, 1, 2)
    adversarial = torch.tensor([0.6, 1.0]).view(1, 1, 1, 2)
    recipe = Avmixup(gamma=2.0, lambda1=1.0, lambda2=0.1)
    mixed, soft = recipe.mix(images, adversarial, torch.tensor([2]), torch.tensor([[0.25]]), 4)
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0.65, 0.975]))
    torch.testing.assert_close(soft, torch.tensor([[0.225, 0.225, 0.325, 0.225]]))


def test_avmixup_ends():
    images, adversarial = torch.tensor([[[[0.5]]]] * 2), torch.tensor([[[[0.4]]]] * 2)
    recipe = Avmixup(gamma=2.0, lambda1=0.7, lambda2=0.1)
    share = torch.tensor([[1.0], [0.0]])
    mixed, soft = recipe.mix(images, adversarial, torch.tensor([0, 0]), share, 3)
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0.5, 0.3]))
    torch.testing.assert_close(soft, torch.tensor([[0.7, 0.15, 0.15], [0.1, 0.45, 0.45]]))


def test_smooth_label_is_a_distribution():
    soft = smooth_label(torch.tensor([3, 0]), 10, 0.1)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(2))
    assert soft[0, 3] == pytest.approx(0.1) and soft[1, 5] == pytest.approx(0.1)
    assert torch.equal(smooth_label(torch.tensor([1]), 3, 1.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_avmixup_loss_by_hand(monkeypatch):
    torch.manual_seed(0)
    weight, images = torch.randn(3, 2), torch.rand(4, 1, 1, 2)
    adversarial = (images + 0.1).clamp(0, 1)
    labels, indices = torch.tensor([0, 1, 2, 1]), torch.tensor([5, 6, 7, 40])
    monkeypatch.setattr(Madry, "adversarial", lambda *_: adversarial)
    found = Avmixup().loss(Linear(weight), images, labels, indices, 11)
    share = uniform(11, indices, (1,), tag="avmixup").double()
    assert share.unique().numel() == 4  # one per image
    x, vertex = images.flatten(1).double(), images.double() + 2 * (adversarial - images).double()
    mixed = share * x + (1 - share) * vertex.clamp(0, 1).flatten(1)
    hot = F.one_hot(labels, 3).double()
    soft = share * hot + (1 - share) * (0.1 * hot + 0.45 * (1 - hot))
    q = softmax((mixed @ weight.double().T).numpy())
    assert found.item() == pytest.approx(-(soft.numpy() * np.log(q)).sum(1).mean(), rel=1e-5)


# Madry


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_madry_trains_on_what_the_attack_gives(monkeypatch, mode):
    classifier = network_with_norm().train()
    images, labels = torch.rand(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    indices, made, calls = torch.arange(6) + 50, torch.rand(6, 1, 6, 6), []
    recipe = Madry(attack_mode=mode)

    def attack(*arguments):
        calls.append((*arguments, classifier.training))
        return made

    monkeypatch.setattr(recipe, "attack", attack)
    torch.manual_seed(3)
    loss = recipe.loss(classifier, images, labels, indices, 17)
    ((attacked, x, y, seed, where, training),) = calls
    assert attacked.__self__ is classifier and x is images and y is labels and where is indices
    assert seed == 17 and training is (mode == "train")
    assert classifier.training
    torch.manual_seed(3)
    assert torch.equal(loss, F.cross_entropy(classifier(made), labels))


def test_madry_attacks_with_random_starts_of_its_own_size():
    recipe = Madry(eps="4/255", steps=3, step_size="1/255")
    assert recipe.attack.eps == pytest.approx(4 / 255)
    assert (recipe.attack.steps, recipe.attack.random_start) == (3, True)
    classifier, images = Linear(torch.randn(2, 9)), torch.full((2, 1, 1, 9), 0.5)
    made = recipe.adversarial(classifier, images, torch.tensor([0, 1]), torch.arange(2), 1)
    other = recipe.adversarial(classifier, images, torch.tensor([0, 1]), torch.arange(2), 2)
    assert not torch.equal(made, other)
    assert (made - images).abs().max() <= 4 / 255 + 1e-6


# attacking a network in training


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("before", [True, False])
def test_attack_mode_leaves_the_network_as_it_was(mode, before):
    network = network_with_norm().train(before)
    network[1].momentum = None  # the running average over all batches
    network[2].eval()  # a part in another mode than the rest
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    with attack_mode(network, mode):
        assert all(module.training is (mode == "train") for module in network.modules())
        for _ in range(3):
            network(torch.rand(5, 1, 6, 6))
    assert [module.training for module in network.modules()] == modes
    assert network[1].momentum is None
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_attack_mode_decides_the_statistics():
    network = network_with_norm().train()
    network[2].p = 0.0
    images = torch.rand(5, 1, 6, 6) * 5
    with torch.no_grad():
        with attack_mode(network, "train"):
            batch = network(images)
        with attack_mode(network, "eval"):
            running = network(images)
        assert torch.equal(running, network.eval()(images))
        assert torch.equal(batch, network.train()(images))
    assert not torch.allclose(batch, running)


def test_attack_mode_restores_after_an_error():
    network = network_with_norm().train()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ZeroDivisionError), attack_mode(network, "eval"):
        network(torch.rand(5, 1, 6, 6))
        raise ZeroDivisionError
    assert network.training and network[1].momentum == 0.1
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_attack_mode_takes_norms_without_running_statistics():
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    with attack_mode(network, "train"):
        network(torch.rand(4, 1, 2, 2))
    assert network[0].momentum == 0.1


def test_unknown_attack_mode():
    with (
        pytest.raises(UserError, match="choose train or eval"),
        attack_mode(nn.Linear(1, 1), "evl"),
    ):
        pass


# schedule and augmentation


def test_steps_of_the_learning_rate():
    recipe = Natural(learning_rate=0.1, milestones=[0.5, 0.75]).recipe
    rates = {step: recipe.rate(step, 80) for step in (0, 39, 40, 59, 60, 79)}
    expected = {0: 0.1, 39: 0.1, 40: 0.01, 59: 0.01, 60: 0.001, 79: 0.001}
    assert rates == pytest.approx(expected)


def test_one_cycle():
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=2.0, schedule="one_cycle")
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[15] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(2.0) == max(rates)
    assert rates[65] == pytest.approx(1.0)
    assert rates[0] > 0 and rates[99] < 0.05
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)


@pytest.mark.parametrize("name", ["augmentation", "schedule", "optimizer"])
def test_unknown_choices_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 'no_such': choose one of"):
        Natural(**{name: "no_such"})


def test_optimizers():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    sgd = Recipe(1, 1, 0.3, momentum=0.9, weight_decay=0.01).optimizer_for(module)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.9, 0.01)
    assert len(group["params"]) == 1  # what is frozen stays out
    assert isinstance(Recipe(1, 1, 0.3, optimizer="adam").optimizer_for(module), torch.optim.Adam)


def test_no_augmentation():
    images = torch.rand(3, 1, 5, 5)
    assert torch.equal(augment(images, "none", 0), images)


def test_flips():
    images = torch.rand(64, 2, 5, 5)
    flipped = augment(images, "flip", 1)
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 16 < same.sum() < 48


def test_crops_are_shifts_of_up_to_four_pixels():
    images = torch.rand(32, 2, 7, 7) + 0.1
    cropped = augment(images, "crop_flip", 1)
    assert cropped.shape == images.shape and cropped.is_contiguous()
    seen = set()
    for image, result in zip(images, cropped, strict=True):
        padded = F.pad(image, (4, 4, 4, 4))
        windows = {
            (down, right, mirror): padded[:, down : down + 7, right : right + 7]
            for down in range(9)
            for right in range(9)
            for mirror in (False, True)
        }
        matches = [
            place
            for place, window in windows.items()
            if torch.equal(result, window.flip(2) if place[2] else window)
        ]
        assert len(matches) == 1
        seen.update(matches)
    for place in zip(*seen, strict=True):  # rows, columns and mirrors all vary
        assert len(set(place)) >= (2 if set(place) <= {False, True} else 6)


@pytest.mark.parametrize("augmentation", ["flip", "crop_flip"])
def test_augmentation_belongs_to_the_seed(augmentation):
    images = torch.rand(16, 1, 6, 6)
    torch.manual_seed(0)
    first = augment(images, augmentation, 7)
    torch.manual_seed(1)
    assert torch.equal(augment(images, augmentation, 7), first)
    assert not torch.equal(augment(images, augmentation, 8), first)
