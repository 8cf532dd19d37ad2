"""The adapter around the AutoAttack package."""

from __future__ import annotations

import sys

import pyautoattack
import pytest
import torch

from purifiers.attacks.autoattack import Autoattack
from purifiers.attacks.autoattack_l2 import AutoattackL2
from purifiers.core import noise
from purifiers.core.errors import UserError
from purifiers.core.target import FIRST_DRAW

EPS = 0.1
BUDGET = {"apgd_steps": 5, "fab_steps": 5, "targets": 2, "square_queries": 20}
CHEAP = {"eps": EPS, **BUDGET}
RADIUS = 0.6


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_lowers_accuracy_inside_the_ball(victim, version):
    images, labels = victim.images[:24], victim.labels[:24]
    settings = CHEAP | ({"apgd_steps": 2} if version == "rand" else {})
    adversarial = Autoattack(version=version, **settings)(victim.model, images, labels)
    assert (adversarial - images).abs().max() <= EPS + 1e-6
    kept = victim.model(adversarial).argmax(dim=1) == labels
    before = victim.model(images).argmax(dim=1) == labels
    assert 0 < kept.sum() < before.sum()
    untouched = kept | ~before
    assert torch.equal(adversarial[untouched], images[untouched])


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_l2_lowers_accuracy_inside_the_ball(victim, version):
    images, labels = victim.images[:24], victim.labels[:24]
    settings = BUDGET | ({"apgd_steps": 2} if version == "rand" else {})
    attack = AutoattackL2(radius=RADIUS, version=version, **settings)
    adversarial = attack(victim.model, images, labels)
    distance = (adversarial - images).double().flatten(1).norm(dim=1)
    assert (distance <= RADIUS * (1 + 1e-5)).all()
    kept = victim.model(adversarial).argmax(dim=1) == labels
    before = victim.model(images).argmax(dim=1) == labels
    assert 0 < kept.sum() < before.sum()
    assert (distance > 0).equal(before & ~kept)


@pytest.mark.parametrize(
    ("attack", "norm", "size"),
    [(Autoattack(**CHEAP), "Linf", EPS), (AutoattackL2(radius=RADIUS, **BUDGET), "L2", RADIUS)],
    ids=["linf", "l2"],
)
def test_is_the_package(victim, attack, norm, size):
    """The same images as from the package itself, given the same seed."""
    images, labels = victim.images[:16], victim.labels[:16]
    ours = attack(victim.model, images, labels, seed=6, indices=torch.arange(16) + 30)
    seed = noise.derive_seed(6, "autoattack", 30)
    trace = sys.gettrace()
    with torch.random.fork_rng(devices=[]):
        suite = pyautoattack.AutoAttack(victim.model, norm=norm, eps=size, seed=seed)
        for apgd in (suite.apgd, suite.apgd_targeted):
            apgd.n_iter, apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = 5, 1, 1, 1
        suite.fab.n_iter, suite.square.n_queries = 5, 20
        suite.fab.n_target_classes = suite.apgd_targeted.n_target_classes = 2
        theirs, _ = suite.run_standard_evaluation(images.clone(), labels, batch_size=16)
    sys.settrace(trace)
    assert not torch.equal(ours, images)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_same_seed_same_images(victim):
    args = (victim.model, victim.images[:8], victim.labels[:8])
    first = Autoattack(**CHEAP)(*args, seed=1)
    torch.rand(7)
    assert torch.equal(first, Autoattack(**CHEAP)(*args, seed=1))
    assert not torch.equal(first, Autoattack(**CHEAP)(*args, seed=2))


def test_leaves_global_state_alone(victim):
    def trace(frame, event, argument):
        return None

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    before, tracer = torch.get_rng_state(), sys.gettrace()
    sys.settrace(trace)
    try:
        labels = model(victim.images[:4]).argmax(dim=1)
        Autoattack(**CHEAP | {"eps": 1e-4})(model, victim.images[:4], labels)
        kept = sys.gettrace()
    finally:
        sys.settrace(tracer)
    assert kept is trace
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_targets_are_cut_to_the_classes(victim):
    def five(x):
        return victim.model(x)[:, :5]

    chosen = victim.labels < 5
    images, labels = victim.images[chosen][:8], victim.labels[chosen][:8]
    adversarial = Autoattack(**CHEAP | {"targets": 9})(five, images, labels)
    assert (five(adversarial).argmax(dim=1) == labels).sum() < len(labels)


def test_too_few_classes_are_refused(victim):
    with pytest.raises(UserError, match="3 classes"):
        Autoattack(**CHEAP)(
            lambda x: victim.model(x)[:, :3], victim.images[:2], torch.tensor([0, 1])
        )


def test_every_query_of_a_random_target_gets_fresh_noise(victim):
    seen = []

    def target(images, indices):
        assert len(indices) == len(images)
        seen.extend(indices.tolist())
        return victim.model(images)

    target.per_image = True
    Autoattack(**CHEAP)(target, victim.images[:4], victim.labels[:4])
    assert len(set(seen)) == len(seen) > 100
    assert min(seen) >= FIRST_DRAW


@pytest.mark.parametrize(("eot_samples", "draws"), [(1, 20), (3, 3)])
def test_every_query_of_the_random_version_is_one_draw(victim, eot_samples, draws):
    """Its gradients are means of the target's draws, else of the package's 20."""
    calls = []

    def defence(images, indices):
        assert len(indices) == len(images) <= 4
        calls.append(indices)
        return victim.model(images)

    defence.per_image = defence.stochastic = True
    defence.eot_samples = eot_samples
    queries = []
    for steps in (2, 3):
        calls.clear()
        attack = Autoattack(**CHEAP | {"version": "rand", "eps": 1e-3, "apgd_steps": steps})
        attack(defence, victim.images[:4], victim.labels[:4], indices=torch.arange(4) + 50)
        seen = torch.cat(calls)
        assert len(seen.unique()) == len(seen), "a draw came twice"
        assert set((seen % FIRST_DRAW).tolist()) == {50, 51, 52, 53}
        queries.append(len(seen))
    # of APGD-CE and APGD-DLR
    assert queries[1] - queries[0] == 4 * 2 * draws


def test_the_standard_version_asks_for_means(victim):
    sizes = []

    def defence(images):
        sizes.append(len(images))
        return victim.model(images)

    defence.eot_samples = 3
    Autoattack(**CHEAP | {"eps": 1e-3})(defence, victim.images[:4], victim.labels[:4])
    assert {size % 3 for size in sizes} == {0}


def test_a_single_image_and_none(victim):
    attack = Autoattack(**CHEAP)
    assert attack(victim.model, victim.images[:1], victim.labels[:1]).shape == (1, 1, 8, 8)
    assert attack(victim.model, victim.images[:0], victim.labels[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("budget", "forwards"),
    [
        ("apgd_steps", 3),  # of APGD-CE, and of APGD-T for two targets
        ("fab_steps", 4),  # gradient and check, for two targets
        ("square_queries", 1),
    ],
)
def test_budgets_are_used(victim, budget, forwards):
    queries = []
    for extra in (0, 5):
        count = 0

        def counted(x):
            nonlocal count
            count += len(x)
            return victim.model(x)

        settings = CHEAP | {"eps": 0.001, budget: CHEAP[budget] + extra}
        Autoattack(**settings)(counted, victim.images[:4], victim.labels[:4])
        queries.append(count)
    assert queries[1] - queries[0] == 4 * 5 * forwards


def test_logits_are_not_written_into(victim):
    """The Square attack overwrites the logits it is given."""
    kept = []

    def keeping(x):
        kept.append(victim.model(x))
        return kept[-1]

    Autoattack(**CHEAP | {"eps": 0.001})(keeping, victim.images[:4], victim.labels[:4])
    assert torch.isfinite(torch.cat(kept)).all()


def test_unknown_version():
    with pytest.raises(UserError, match=r"version is 'standrd'.*did you mean 'standard'"):
        Autoattack(version="standrd")


def test_l2_parameters_and_images():
    with pytest.raises(UserError, match="AutoattackL2: radius is 0, but"):
        AutoattackL2(radius=0.0)
    with pytest.raises(UserError, match="AutoattackL2: version is 'random'"):
        AutoattackL2(version="random")
    with pytest.raises(UserError, match="images are 4x8, but"):
        AutoattackL2(**BUDGET)(lambda x: x.flatten(1), torch.zeros(1, 1, 4, 8), torch.tensor([0]))


def test_the_packages_flags_are_kept(victim):
    """A model that differentiates in its forward pass is a dynamic defence to the package."""

    def dynamic(images):
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_(True)
            torch.autograd.grad(leaf.square().sum(), leaf)
        return victim.model(images)

    small = {"apgd_steps": 2, "fab_steps": 1, "targets": 1, "square_queries": 2}
    attack = Autoattack(eps=0.1, **small)
    attack(victim.model, victim.images, victim.labels)
    assert attack.flags == ()
    attack(dynamic, victim.images, victim.labels)
    assert attack.flags == (
        "it seems to be a dynamic defense! The evaluation with AutoAttack might be insufficient",
    )
    later = Autoattack(eps=0.1, **small)  # the package does not reset its count
    later(victim.model, victim.images, victim.labels)
    assert later.flags == ()
    flat = Autoattack(eps=0.1, **small)
    flat(lambda images: victim.model(images).softmax(1), victim.images, victim.labels)
    assert flat.flags[0].startswith("it seems that the output is a probability distribution")
