"""A classifier behind purifiers, and the gradients an attacker gets of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core.component import Classifier, Method, default_indices
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.target import as_target


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


class Shrink(Method):
    """Multiplies by 0.9 three times; one step is one time."""

    def step(self, images, seed=0, indices=None):
        return 0.9 * images

    def purify(self, images, seed=0, indices=None):
        return 0.9**3 * images


class Judge(Method):
    """Finds bright images adversarial, by ``times`` their brightness."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def purify(self, images, seed=0, indices=None):
        return images.round()

    def detector_logit(self, images):
        return self.times * images.flatten(1).sum(dim=1)


class Slope(Method):
    """A score towards the middle; purifies nothing."""

    def purify(self, images, seed=0, indices=None):
        return images

    def score(self, images):
        return 0.5 - images


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


def test_one_step_goes_through_one_step_of_each_purifier():
    """Forward and backward: f(c x) with c = 0.9 twice, so 3 c^3 x^2; in full c would be 0.9^6."""
    defence = Defence(Cube(), [Shrink(), Shrink()], gradient="one_step")
    assert torch.equal(defence(IMAGES), Cube()(0.9 * (0.9 * IMAGES)))
    torch.testing.assert_close(gradient(defence), 3 * 0.9**6 * IMAGES**2)
    torch.testing.assert_close(defence.purify(IMAGES), 0.9**6 * IMAGES)
    exact = gradient(Defence(Cube(), [Shrink(), Shrink()]))
    torch.testing.assert_close(exact, 3 * 0.9**18 * IMAGES**2)


def test_a_purifier_of_one_step_is_unrolled_whole():
    one, whole = (Defence(Cube(), [Halve()], gradient=mode) for mode in ("one_step", "exact"))
    assert torch.equal(one(IMAGES), whole(IMAGES))
    assert torch.equal(gradient(one), gradient(whole))


def test_seed_and_indices_reach_every_step():
    recorder = Recorder()
    Defence(Cube(), [recorder], gradient="one_step", seed=7)(IMAGES, torch.tensor([40, 3]))
    assert recorder.calls == [(7, [40, 3], True)]


def test_scores_only_gives_scores_and_no_gradient():
    defence = Defence(Cube(), [Judge(1.0), Slope(), Round()], gradient="none")
    leaf = IMAGES.clone().requires_grad_(True)
    for query in (defence, defence.classify):
        with pytest.raises(UserError, match="takes gradients, but the attacker sees scores only"):
            query(leaf)
        with torch.no_grad():
            query(leaf)
        query(IMAGES)
    for part in ("detector_logit", "score"):
        with pytest.raises(UserError, match=f"reads a method's {part}, but the attacker sees"):
            getattr(defence, part)(IMAGES)


def test_scores_only_answers_as_the_whole_defence():
    defence = Defence(Cube(), [Halve(), Shrink()], gradient="none")
    assert torch.equal(defence(IMAGES), Cube()(0.9**3 * (IMAGES / 2)))


@pytest.mark.parametrize("name", ["pgd", "approximate_input", "joint_score", "auxiliary_aware"])
def test_an_attack_with_gradients_is_refused_where_scores_are_all(name):
    defence = Defence(Cube(), [Judge(1.0)], gradient="none")
    with pytest.raises(UserError, match="attacker sees scores only"):
        purifiers.attack(name, eps=0.1)(defence, IMAGES, torch.tensor([0, 0]))


def test_eot_reaches_the_attack():
    """Two draws of a random purifier, and the mean of their answers."""
    made = purifiers.method("random_sign", eps=0.1)
    single, double = (Defence(Cube(), [made], seed=3, eot_samples=k) for k in (1, 2))
    one, two = as_target(single), as_target(double)
    where = torch.tensor([5, 9])
    mean = (one(IMAGES, where) + one(IMAGES, where)) / 2
    torch.testing.assert_close(two(IMAGES, where), mean)
    assert two.eot_samples == 2 and two.stochastic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eot_samples": 0}, "eot_samples is 0, but at least 1"),
        (
            {"eot_combine": "sgn"},
            r"eot_combine is 'sgn': choose one of mean, sign, displacement \(did you mean",
        ),
    ],
)
def test_impossible_draws_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Defence(Cube(), [Round()], **arguments)


def test_the_verdict_is_the_auxiliary_methods_or_the_first_detectors():
    brightness = IMAGES.flatten(1).sum(dim=1)
    chain = [Halve(), Judge(2.0), Judge(3.0)]
    torch.testing.assert_close(Defence(Cube(), chain).detector_logit(IMAGES), 2 * brightness)
    beside = Defence(Cube(), chain, auxiliary=Judge(5.0))
    torch.testing.assert_close(beside.detector_logit(IMAGES), 5 * brightness)
    torch.testing.assert_close(beside(IMAGES), Cube()((IMAGES / 2).round()))  # does not purify
    torch.testing.assert_close(
        Defence(Cube(), auxiliary=Judge(5.0)).detector_logit(IMAGES), 5 * brightness
    )
    torch.testing.assert_close(Defence(Cube(), [Judge(1.0), Slope()]).score(IMAGES), 0.5 - IMAGES)


def test_a_defence_without_a_detector_says_so():
    with pytest.raises(UserError, match="goes against a method's detector_logit, but none"):
        Defence(Cube(), [Halve(), Slope()], auxiliary=Round()).detector_logit(IMAGES)
    with pytest.raises(UserError, match="goes against a method's score, but none"):
        Defence(Cube(), [Judge(1.0)]).score(IMAGES)


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
    asked = as_target(defence)(IMAGES, torch.tensor([5, 9]))
    assert not torch.equal(asked, whole)  # an attacker draws other coins


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
