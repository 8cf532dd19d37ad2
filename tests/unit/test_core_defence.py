"""A classifier behind purifiers, and the gradients an attacker gets of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core.component import Classifier, Method, as_target, default_indices
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError


class Cube(Classifier):
    """Logits (sum x^3, -sum x^3): a gradient that shows where it was taken."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), 2)

    def forward(self, images: Tensor) -> Tensor:
        score = images.pow(3).flatten(1).sum(dim=1)
        return torch.stack([score, -score], dim=1)


class Halve(Method):
    def purify(self, images, seed=0, indices=None):
        return images / 2


class Round(Method):
    def purify(self, images, seed=0, indices=None):
        return images.round()


class Recorder(Method):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, list[int], bool]] = []

    def purify(self, images, seed=0, indices=None):
        where = default_indices(images, indices).tolist()
        self.calls.append((seed, where, torch.is_grad_enabled()))
        return images + 0.25


IMAGES = torch.tensor([[0.1, 0.7, 0.9, 0.4], [0.6, 0.2, 0.3, 0.8]]).view(2, 1, 2, 2)


def gradient(defence: Defence) -> Tensor:
    leaf = IMAGES.clone().requires_grad_(True)
    return torch.autograd.grad(defence(leaf)[:, 0].sum(), leaf)[0]


def test_methods_are_applied_first_to_last():
    one = Defence(Cube(), [Halve(), Recorder()])
    other = Defence(Cube(), [Recorder(), Halve()])
    torch.testing.assert_close(one.purify(IMAGES), IMAGES / 2 + 0.25)
    torch.testing.assert_close(other.purify(IMAGES), (IMAGES + 0.25) / 2)
    torch.testing.assert_close(one(IMAGES), Cube()(IMAGES / 2 + 0.25))


@pytest.mark.parametrize("mode", ["exact", "bpda"])
def test_forward_is_the_purified_image(mode):
    defence = Defence(Cube(), [Halve(), Round()], gradient=mode)
    assert torch.equal(defence(IMAGES), Cube()((IMAGES / 2).round()))


def test_exact_gradient_goes_through_the_purifier():
    """d/dx sum (x/2)^3 = 3/8 x^2; rounding has none."""
    torch.testing.assert_close(gradient(Defence(Cube(), [Halve()])), 3 / 8 * IMAGES**2)
    assert not gradient(Defence(Cube(), [Round()])).any()


def test_bpda_takes_the_gradient_at_the_purified_image():
    """The identity backward: 3 p^2 at p = x / 2, and at p = round(x)."""
    halved = gradient(Defence(Cube(), [Halve()], gradient="bpda"))
    torch.testing.assert_close(halved, 3 / 4 * IMAGES**2)
    rounded = gradient(Defence(Cube(), [Round()], gradient="bpda"))
    torch.testing.assert_close(rounded, 3 * IMAGES.round())


def test_no_methods_is_the_classifier():
    defence = Defence(Cube())
    assert torch.equal(defence(IMAGES), Cube()(IMAGES))
    torch.testing.assert_close(gradient(defence), 3 * IMAGES**2)


@pytest.mark.parametrize(("mode", "with_gradients"), [("exact", True), ("bpda", False)])
def test_seed_and_indices_reach_every_purifier(mode, with_gradients):
    first, second = Recorder(), Recorder()
    defence = Defence(Cube(), [first, second], gradient=mode, seed=7)
    defence(IMAGES, torch.tensor([40, 3]))
    defence(IMAGES)
    assert first.calls == second.calls
    assert first.calls == [(7, [40, 3], with_gradients), (7, [0, 1], with_gradients)]


def test_random_purifiers_are_the_same_for_an_image_in_any_batch():
    defence = purifiers.defend(Cube(), [purifiers.method("random_sign", eps=0.1)], seed=3)
    whole = defence(IMAGES, torch.tensor([5, 9]))
    assert torch.equal(defence(IMAGES[1:], torch.tensor([9])), whole[1:])
    assert not torch.equal(defence(IMAGES[1:], torch.tensor([8])), whole[1:])
    assert as_target(defence) is defence  # attacks hand it the indices


def test_unknown_gradient():
    with pytest.raises(UserError, match="choose one of exact, bpda"):
        purifiers.defend(Cube(), [], gradient="bpd")


def test_attacks_take_a_defence():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    defence = purifiers.defend(classifier, [Round()], gradient="bpda")
    labels = defence(IMAGES).argmax(dim=1)
    adversarial = purifiers.attack("pgd", eps=0.4, step_size=0.1, steps=10)(defence, IMAGES, labels)
    assert (defence(adversarial).argmax(dim=1) != labels).any()
