"""Square and SPSA: optima of linear models, budgets, and scores only."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from purifiers.attacks import spsa
from purifiers.attacks.spsa import Spsa
from purifiers.attacks.square import Square
from purifiers.core import noise
from purifiers.core.errors import UserError

from .toys import binary, linear_problem

EPS = 0.1


class Asked:
    """A target that keeps what it was asked, per image."""

    per_image = True

    def __init__(self, model):
        self.model = model
        self.images = defaultdict(list)
        self.sizes = []

    def __call__(self, images, indices):
        assert not torch.is_grad_enabled() and not images.requires_grad
        assert images.min() >= 0 and images.max() <= 1
        self.sizes.append(len(images))
        for image, index in zip(images, indices.tolist(), strict=True):
            self.images[index].append(image.clone())
        return self.model(images)

    @property
    def counts(self) -> Counter:
        return Counter({index: len(images) for index, images in self.images.items()})


def test_square_reaches_the_corner_of_the_ball():
    """eps * ||w||_1 lower on a linear model, pixel by pixel."""
    problem = linear_problem()
    adversarial = Square(eps=EPS, queries=1000)(problem, problem.images, problem.labels)
    torch.testing.assert_close(adversarial, problem.optimum(EPS), atol=1e-6, rtol=0)


def test_spsa_comes_close_to_the_corner_of_the_ball():
    problem = linear_problem()
    attack = Spsa(eps=EPS, steps=60, samples=128, learning_rate=0.02)
    adversarial = attack(problem, problem.images, problem.labels)

    def gain(images: Tensor) -> Tensor:
        return ((images - problem.images) * problem.weights).sum(dim=(1, 2, 3))

    assert (gain(adversarial) / gain(problem.optimum(EPS))).min() > 0.97


def test_spsa_estimates_the_gradient():
    """One step against a quadratic score, whose gradient central differences find without bias."""
    problem = linear_problem()
    images, labels = problem.images.clamp(0.3, 0.7), problem.labels

    def curved(x):
        score = (x**2).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    seen = []
    attack = Spsa(eps=EPS, steps=1, samples=20_000)
    estimate = attack._slope

    def watched(*args):
        seen.append(estimate(*args))
        return seen[-1]

    attack._slope = watched
    attack(curved, images, torch.ones_like(labels))
    # an entry's error has a standard deviation of |gradient| / 100 over pairs
    torch.testing.assert_close(seen[0], 2 * images, atol=5 * 7.1 / 100, rtol=0)
    assert torch.corrcoef(torch.stack([seen[0].flatten(), images.flatten()]))[0, 1] > 0.85


@pytest.mark.parametrize("queries", [1, 2, 3, 70, 150])
def test_square_spends_its_budget_and_no_gradient(victim, queries):
    target = Asked(victim.model)
    Square(eps=EPS, queries=queries)(target, victim.images, victim.labels)
    assert set(target.counts.values()) == {queries}
    assert len(target.counts) == len(victim.images)


@pytest.mark.parametrize("samples", [10, 50, 300])
def test_spsa_spends_its_budget_and_no_gradient(victim, samples):
    target = Asked(victim.model)
    Spsa(eps=EPS, steps=2, samples=samples)(target, victim.images, victim.labels)
    assert set(target.counts.values()) == {2 * (samples + 1) + 1}
    assert max(target.sizes) <= spsa.AT_ONCE


@pytest.mark.parametrize(
    "make",
    [
        lambda stop: Square(eps=EPS, queries=120, stop=stop),
        lambda stop: Spsa(eps=EPS, steps=20, samples=16, learning_rate=0.03, stop=stop),
    ],
    ids=["square", "spsa"],
)
def test_stop_at_success_breaks_the_same_images(victim, make):
    asked, broken, margins = {}, {}, {}
    for stop in ("never", "success"):
        target = Asked(victim.model)
        adversarial = make(stop)(target, victim.images, victim.labels)
        broken[stop] = ~victim.correct(adversarial)
        logits = victim.model(adversarial)
        true = logits.gather(1, victim.labels.unsqueeze(1)).squeeze(1)
        margins[stop] = 2 * true - logits.topk(2, dim=1).values.sum(dim=1)
        asked[stop] = target.counts
    assert torch.equal(broken["never"], broken["success"])
    assert 5 < broken["never"].sum() < len(victim.images)
    assert sum(asked["success"].values()) < 0.9 * sum(asked["never"].values())
    # the survivors had the full budget, and only "never" goes on behind the boundary
    for index in (~broken["never"]).nonzero().flatten().tolist():
        assert asked["success"][index] == asked["never"][index]
    there = broken["never"]
    assert margins["never"][there].mean() < margins["success"][there].mean() - 0.2


@pytest.mark.parametrize(
    "attack",
    [Square(eps=EPS, queries=40), Spsa(eps=EPS, steps=2, samples=70)],
    ids=["square", "spsa"],
)
@pytest.mark.parametrize("eot_samples", [1, 3])
def test_an_image_is_asked_the_same_whatever_its_batch(victim, attack, eot_samples):
    """Also of a defence that is random at every question."""

    def model(images, indices):
        shift = noise.uniform(0, indices, images.shape[1:], low=-0.1, high=0.1)
        return victim.model((images + shift).clamp(0, 1))

    model.per_image = model.stochastic = True
    model.eot_samples = eot_samples
    indices = torch.arange(200, 264)
    together = attack(model, victim.images, victim.labels, seed=5, indices=indices)
    parts = [
        attack(model, victim.images[rows], victim.labels[rows], seed=5, indices=indices[rows])
        for rows in torch.arange(64).flip(0).split(9)
    ]
    alone = torch.cat(parts).flip(0)
    # an estimated slope of almost 0 may flip
    assert ((together - alone).abs() > 1e-4).float().mean() < 0.002


@pytest.mark.parametrize("attack", [Square(eps=EPS, queries=2), Spsa(eps=EPS, steps=1, samples=2)])
def test_misclassified_images_stay_misclassified(attack):
    """Although they lie so close to the boundary that random stripes would take many back."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 1, 6, 6, generator=generator)
    images = 0.3 + 0.4 * torch.rand(40, 1, 6, 6, generator=generator)
    goal = (images * weights).sum(dim=(1, 2, 3), keepdim=True) - 1e-3
    images = images - goal * weights / weights.square().sum()
    labels = torch.zeros(40, dtype=torch.int64)

    def model(x):
        return binary(weights, x)

    for stop in ("never", "success"):
        attack.stop = stop
        assert (model(images).argmax(dim=1) == 1).all()
        adversarial = attack(model, images, labels)
        assert (model(adversarial).argmax(dim=1) == 1).all()
        assert torch.equal(adversarial, images) == (stop == "success")


def test_spsa_returns_the_best_iterate():
    """Steps that overshoot the lowest margin are not taken back, but not returned either."""

    def valley(x):
        score = 1 + (x.mean(dim=(1, 2, 3)) - 0.52).square()
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    images, label = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    target = Asked(valley)
    adversarial = Spsa(eps=EPS, steps=1, learning_rate=EPS, samples=64)(target, images, label)
    assert valley(target.images[0][-1].unsqueeze(0))[0, 0] > valley(images)[0, 0]
    assert torch.equal(adversarial, images)


def test_square_asks_for_the_image_then_for_stripes(victim):
    target = Asked(victim.model)
    Square(eps=EPS, queries=2)(target, victim.images, victim.labels)
    for index, (first, second) in target.images.items():
        assert torch.equal(first, victim.images[index])
        up, down = (first + EPS).clamp(0, 1), (first - EPS).clamp(0, 1)
        columns = (second == up).all(dim=1) | (second == down).all(dim=1)
        assert columns.all()
    stripes = torch.stack([images[1] for images in target.images.values()])
    assert len(stripes.unique(dim=0)) == len(stripes)


def constant(images: Tensor) -> Tensor:
    """Always class 0, so that Square keeps its stripes and every square is a fresh proposal."""
    return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_square_proposes_squares_of_the_right_size_and_none_in_vain(channels):
    images = 0.2 + 0.6 * torch.rand(4, channels, 9, 12, generator=torch.Generator().manual_seed(0))
    images[0] = 0.0
    target = Asked(constant)
    attack = Square(eps=EPS, queries=250, p_init=0.5)
    attack(target, images, torch.zeros(4, dtype=torch.int64))
    touched = torch.zeros(9, 12, dtype=torch.bool)
    for index in range(4):
        _, stripes, *proposals = target.images[index]
        for number, proposal in enumerate(proposals):
            side = attack._sides(9, 12)[number]
            changed = (proposal != stripes).any(dim=0)
            assert changed.any(), "a query was spent on what is known already"
            rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
            assert rows.max() - rows.min() == side - 1  # stripes have whole columns
            assert columns.max() - columns.min() < side
            touched |= changed
            shift = (proposal - images[index])[:, changed]
            moved = torch.where(images[index][:, changed] > 0, EPS, shift.abs())
            torch.testing.assert_close(shift.abs(), moved)
    assert touched.all(), "some pixels are never reached"


def test_square_follows_the_schedule_of_autoattack():
    for queries, p_init in ((5000, 0.8), (200, 0.3)):
        peer = SquareAttack(None, eps=EPS, n_queries=queries, p_init=p_init)
        expected = [
            min(max(round((peer.p_selection(i) * 32 * 28) ** 0.5), 1), 28) for i in range(queries)
        ]
        assert Square(queries=queries, p_init=p_init)._sides(32, 28) == expected


def test_square_is_as_strong_as_autoattacks(victim):
    """At equal queries, over three seeds."""
    ours = peers = 0
    right = victim.correct(victim.images)
    images, labels = victim.images[right], victim.labels[right]
    with torch.random.fork_rng(devices=[]):
        for seed in range(3):
            adversarial = Square(eps=0.08, queries=100)(victim.model, images, labels, seed)
            ours += int((victim.model(adversarial).argmax(dim=1) == labels).sum())
            peer = SquareAttack(
                lambda x: victim.model(x).clone(), eps=0.08, n_queries=100, seed=seed, device="cpu"
            )
            adversarial = peer.perturb(images, labels)
            peers += int((victim.model(adversarial).argmax(dim=1) == labels).sum())
    assert 0 < ours <= peers + 2 < 3 * len(images)


def test_wrong_parameters_are_refused():
    with pytest.raises(UserError, match="queries is 0"):
        Square(queries=0)
    with pytest.raises(UserError, match=r"p_init is 80.*\(0, 1\]"):
        Square(p_init=80)
    with pytest.raises(UserError, match=r"stop is 'sucess'.*did you mean 'success'"):
        Square(stop="sucess")
    with pytest.raises(UserError, match=r"samples is 7.*pairs"):
        Spsa(samples=7)
    with pytest.raises(UserError, match="delta is 0"):
        Spsa(delta=0)
