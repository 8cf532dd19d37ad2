"""Fast-LPA: its distance by hand, its step, and its bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks._losses import margin
from purifiers.attacks._perceptual import distances, embedding
from purifiers.attacks.fast_lpa import FastLpa
from purifiers.classifiers.resnet50 import Resnet50
from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.taps import features_and_logits, layer_taps, tapped_features
from purifiers.methods.identity import Identity


class Net(Classifier):
    """Two convolutions; a ReLU works in place on the first tap's output."""

    TAPS = ("stem", "early", "late", "embedding")

    def __init__(self) -> None:
        super().__init__((3, 12, 12), 4)
        self.stem = nn.Identity()
        self.early = nn.Conv2d(3, 8, 3, padding=1)
        self.late = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh())
        self.embedding = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.head(self.embedding(self.late(self.early(images))).flatten(1))

    def features(self, images, taps):
        early = self.early(images)
        late = self.late(early.clone())
        parts = {"early": early, "late": late, "embedding": self.embedding(late)}
        return [parts[tap] for tap in taps]


@pytest.fixture(scope="module")
def problem() -> tuple[Net, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = frozen(Net())
        images = 0.2 + 0.6 * torch.rand(12, 3, 12, 12)
    return net, images, net(images).argmax(dim=1)


def perceptual(net: Net, first: Tensor, second: Tensor) -> Tensor:
    taps = ("early", "late")
    return distances(*(embedding(net.features(images, taps)) for images in (first, second)))


def test_the_distance_by_hand():
    """(3, 4) and (0, 5) point to (.6, .8) and (0, 1): .6^2 + .2^2 = .4.

    A second layer of two positions, of which one turns from (1, 0) to (0, 1), adds 2 / 2.
    """
    first = [
        torch.tensor([3.0, 4.0]).view(1, 2, 1, 1),
        torch.tensor([[1.0, 7.0], [0.0, 0.0]]).view(1, 2, 1, 2),
    ]
    second = [
        torch.tensor([0.0, 5.0]).view(1, 2, 1, 1),
        torch.tensor([[0.0, 2.0], [1.0, 0.0]]).view(1, 2, 1, 2),
    ]
    distance = distances(embedding(first), embedding(second))
    torch.testing.assert_close(distance, torch.tensor([1.4**0.5]))
    dead = torch.zeros(1, 2, 1, 1, requires_grad=True)
    embedding([dead]).sum().backward()
    assert torch.isfinite(dead.grad).all()


def test_layers_lie_between_the_ends_of_a_network():
    names = ("stage1", "stage2", "stage3", "stage4")
    assert layer_taps(Resnet50((3, 8, 8), 10, width=1)) == names
    net = Net()
    assert layer_taps(net) == ("early", "late")
    net.TAPS = ("early", "embedding")
    assert layer_taps(net) == ("early",)


def test_one_pass_gives_layers_and_logits(problem):
    net, images, _ = problem
    passes = []
    hook = net.early.register_forward_hook(lambda *_: passes.append(1))
    layers, logits = features_and_logits(net, images, ("early", "late"))
    hook.remove()
    assert len(passes) == 1
    torch.testing.assert_close(logits, net(images))
    for layer, expected in zip(layers, net.features(images, ("early", "late")), strict=True):
        torch.testing.assert_close(layer, expected)
    outer = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 4))
    (layer,), logits = features_and_logits(outer, images, ("0",))
    torch.testing.assert_close(layer, tapped_features(outer, images, ("0",))[0])
    torch.testing.assert_close(logits, outer(images))


@pytest.mark.parametrize("bound", [0.05, 0.3])
def test_it_ends_within_its_bound_and_uses_it(problem, bound):
    net, images, labels = problem
    adversarial = FastLpa(bound=bound, steps=20)(net, images, labels)
    distance = perceptual(net, adversarial, images)
    assert distance.max() <= bound * (1 + 1e-5)
    assert distance.mean() > 0.7 * bound
    assert (margin(net(adversarial), labels) < margin(net(images), labels)).all()
    free = FastLpa(bound=bound, steps=20, projected=False)(net, images, labels)
    assert bound < perceptual(net, free, images).max() < 2 * bound


def test_a_step_has_the_length_that_is_set(problem, monkeypatch):
    """From the image itself: a step of the distance ``bound``, to first order."""
    net, images, labels = problem
    monkeypatch.setattr("purifiers.attacks.fast_lpa.START_SPREAD", 0.0)
    monkeypatch.setattr("purifiers.attacks.fast_lpa.PROBE", 0.001)
    moved = FastLpa(bound=0.002, steps=1, projected=False)(net, images, labels)
    torch.testing.assert_close(
        perceptual(net, moved, images), torch.full((12,), 0.002), rtol=0.05, atol=0.0
    )


def test_a_defence_is_attacked_like_its_network(problem):
    """In two passes instead of one; its distances are those of unpurified images."""
    net, images, labels = problem
    attack = FastLpa(bound=0.2, steps=4)
    expected = attack(net, images, labels)
    torch.testing.assert_close(attack(Defence(net), images, labels), expected)
    torch.testing.assert_close(attack(Defence(net, [Identity()]), images, labels), expected)


def test_named_layers(problem):
    net, images, labels = problem
    late = FastLpa(bound=0.1, steps=5, taps=("late",))(net, images, labels)
    distance = distances(*(embedding(net.features(x, ("late",))) for x in (late, images)))
    assert distance.max() <= 0.1 * (1 + 1e-5)
    assert perceptual(net, late, images).max() > 0.1


def test_what_has_no_layers_is_refused(problem):
    net, images, labels = problem
    attack = FastLpa(steps=1)
    with pytest.raises(UserError, match="plain function has none"):
        attack(lambda x: net(x), images, labels)
    outer = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    with pytest.raises(UserError, match="Sequential declares no layers: set taps"):
        attack(outer, images, labels)
    with pytest.raises(UserError, match="scores only"):
        attack(Defence(net, gradient="none"), images, labels)
    with pytest.raises(UserError, match="plain function has none"):
        attack(Defence(lambda x: net(x)), images, labels)
