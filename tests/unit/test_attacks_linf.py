"""FGSM, PGD and MIM against closed forms, hand calculations and a small network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from purifiers.attacks._linf import ascend, random_start
from purifiers.attacks.fgsm import Fgsm
from purifiers.attacks.mim import Mim
from purifiers.attacks.pgd import Pgd
from purifiers.core.errors import UserError
from purifiers.core.target import as_target

from .toys import linear_problem

EPS = 0.1


@pytest.mark.parametrize(
    "attack",
    [
        Fgsm(eps=EPS),
        Pgd(eps=EPS, step_size=0.03, steps=8),
        Pgd(eps=EPS, step_size=0.03, steps=8, random_start=False),
        Mim(eps=EPS, step_size=0.02, steps=5),
    ],
    ids=["fgsm", "pgd", "pgd from the image", "mim"],
)
def test_linear_optimum(attack):
    problem = linear_problem()
    adversarial = attack(problem, problem.images, problem.labels, seed=3)
    torch.testing.assert_close(adversarial, problem.optimum(EPS), atol=1e-6, rtol=0)


def test_momentum_by_hand():
    """Gradients (3, 1) then (-1, 1): the first pixel keeps climbing only thanks to momentum."""
    slopes = iter([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])])
    image, label = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])

    def gradient_of(images, labels, indices):
        return next(slopes).view(1, 1, 1, 2), torch.tensor([[1.0, 0.0]])

    def run(decay):
        return ascend(
            as_target(lambda images: images.flatten(1)), image, label, label, start=image,
            eps=0.5, step_size=0.1, steps=2, decay=decay, gradient_of=gradient_of,
        )  # fmt: skip

    # momentum: (.75, .25), then (.75 - .5, .25 + .5)
    torch.testing.assert_close(run(1.0).flatten(), torch.tensor([0.7, 0.7]))
    slopes = iter([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])])
    # decay .5: (.375 - .5, .125 + .5)
    torch.testing.assert_close(run(0.5).flatten(), torch.tensor([0.5, 0.7]))


def test_mim_by_hand():
    """Two steps on a quadratic score whose gradient turns the first pixel back."""
    terms = ((0, 0.55, 4.0), (1, 0.9, 1.0))  # pixel, centre, strength

    def logits(images):
        flat = images.flatten(1)
        score = -sum(s * (flat[:, i] - c) ** 2 for i, c, s in terms)
        return torch.stack([-score, score], dim=1)

    def by_hand(decay):
        x, g = [0.5, 0.5], [0.0, 0.0]
        for _ in range(2):
            # the label is 0, and cross entropy rises with the score by a positive factor
            slope = [-2 * s * (x[i] - c) for i, c, s in terms]
            total = sum(abs(v) for v in slope)
            g = [decay * a + b / total for a, b in zip(g, slope, strict=True)]
            x = [v + 0.2 * math.copysign(1, a) for v, a in zip(x, g, strict=True)]
        return torch.tensor(x)

    image, label = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    for decay in (0.0, 1.0, 4.0):
        attack = Mim(eps=0.45, step_size=0.2, steps=2, decay=decay)
        torch.testing.assert_close(attack(logits, image, label).flatten(), by_hand(decay))
    assert not torch.equal(by_hand(0.0), by_hand(4.0))


def test_mim_without_momentum_is_pgd(victim):
    plain = Pgd(eps=EPS, step_size=0.02, steps=5, random_start=False)
    momentum = Mim(eps=EPS, step_size=0.02, steps=5, decay=0.0)
    args = (victim.model, victim.images, victim.labels)
    assert torch.equal(plain(*args), momentum(*args))


def test_zero_gradient_leaves_the_image():
    image, label = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])

    def saturated(images):
        margin = 1e4 + 0 * images.sum(dim=(1, 2, 3))
        return torch.stack([margin, -margin], dim=1)

    assert torch.equal(Mim(eps=EPS)(saturated, image, label), image)


def test_random_start_is_uniform_in_the_ball():
    images = torch.full((50, 1, 20, 20), 0.5)
    start = random_start(images, EPS, 0, torch.arange(50), tag="pgd")
    shift = (start - images).flatten() / EPS
    assert shift.abs().max() <= 1 + 1e-5
    counts = torch.histc(shift, bins=10, min=-1, max=1)
    # 20000 draws, 2000 in each tenth, standard deviation 42
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_random_start_belongs_to_the_image(victim):
    images = victim.images[:6]
    start = random_start(images, EPS, 5, torch.arange(10, 16), tag="pgd")
    assert torch.equal(start[4:5], random_start(images[4:5], EPS, 5, torch.tensor([14]), "pgd"))
    assert not torch.equal(start, random_start(images, EPS, 6, torch.arange(10, 16), "pgd"))
    again = random_start(images, EPS, 5, torch.arange(6), "pgd")
    assert not torch.equal(start, again)


@pytest.mark.parametrize("make", [Pgd, Mim])
def test_stop_at_success_breaks_the_same_images(victim, make):
    images, labels = victim.images, victim.labels
    seen = {"never": 0, "success": 0}
    made = {}
    for stop in seen:

        def counted(x, stop=stop):
            seen[stop] += len(x)
            return victim.model(x)

        made[stop] = make(eps=EPS, step_size=0.02, steps=10, stop=stop)(counted, images, labels)
    survivors = victim.correct(made["never"])
    assert 0 < survivors.sum() < len(survivors)
    assert torch.equal(survivors, victim.correct(made["success"]))
    torch.testing.assert_close(
        made["never"][survivors], made["success"][survivors], atol=1e-5, rtol=0
    )
    assert seen["never"] == 10 * len(images)
    assert seen["success"] < 0.8 * seen["never"]


def test_stop_at_success_keeps_what_is_broken_from_the_start(victim):
    wrong = (victim.labels + 1) % 10
    attack = Pgd(eps=EPS, steps=3, random_start=False, stop="success")
    adversarial = attack(victim.model, victim.images, wrong)
    broken = ~(victim.model(victim.images).argmax(dim=1) == wrong)
    assert broken.sum() > 50
    assert torch.equal(adversarial[broken], victim.images[broken])


def test_restarts_keep_what_is_broken_and_try_the_rest_anew(victim):
    def attacked(restarts: int) -> tuple[Tensor, Tensor]:
        attack = Pgd(eps=EPS, step_size=0.02, steps=2, restarts=restarts)
        adversarial = attack(victim.model, victim.images, victim.labels, seed=0)
        return adversarial, victim.model(adversarial).argmax(dim=1) == victim.labels

    (once, left), (often, still) = attacked(1), attacked(6)
    assert torch.equal(often[~left], once[~left])
    assert (often[left] != once[left]).flatten(1).any(dim=1).all()
    assert still.sum() < left.sum()


@pytest.mark.parametrize("make", [Fgsm, Pgd])
def test_predicted_labels_are_those_of_the_clean_images(victim, make):
    wrong = (victim.labels + 1) % 10
    arguments = (victim.model, victim.images)
    predicted = victim.model(victim.images).argmax(dim=1)
    told = make(eps=0.05)(*arguments, predicted, seed=1)
    assert torch.equal(make(eps=0.05, attack_labels="predicted")(*arguments, wrong, seed=1), told)
    assert not torch.equal(make(eps=0.05)(*arguments, wrong, seed=1), told)


def test_stronger_budgets_break_more(victim):
    accuracy = [
        victim.accuracy(attack(victim.model, victim.images, victim.labels))
        for attack in (
            Pgd(eps=0.001, step_size=0.001),
            Pgd(eps=0.05, step_size=0.0125),
            Pgd(eps=0.15, step_size=0.0375),
        )
    ]
    assert victim.accuracy(victim.images) > 0.9
    assert accuracy[0] > accuracy[1] > accuracy[2]


@pytest.mark.parametrize("eps", ["1/255", "8/255", 0.3])
def test_stays_in_the_ball_and_the_range(victim, eps):
    for attack in (Fgsm(eps=eps), Pgd(eps=eps, step_size="4/255"), Mim(eps=eps, step_size=0.05)):
        adversarial = attack(victim.model, victim.images, victim.labels)
        assert (adversarial - victim.images).abs().max() <= attack.eps + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1


def test_wrong_parameters_are_refused():
    with pytest.raises(UserError, match=r"stop is 'sucess'.*did you mean 'success'"):
        Pgd(stop="sucess")
    with pytest.raises(UserError, match="steps is 0"):
        Mim(steps=0)
    with pytest.raises(UserError, match="would all be the same"):
        Pgd(restarts=2, random_start=False)
    with pytest.raises(UserError, match=r"attack_labels is 'predict'.*did you mean 'predicted'"):
        Fgsm(attack_labels="predict")
    with pytest.raises(UserError, match="not a length"):
        Fgsm(eps="eight")
