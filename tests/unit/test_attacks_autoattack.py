"""The adapter around the AutoAttack package."""

from __future__ import annotations

import sys

import pytest
import torch

from purifiers.attacks.autoattack import FIRST_DRAW, Autoattack
from purifiers.core.errors import UserError

EPS = 0.1
CHEAP = {"eps": EPS, "apgd_steps": 5, "fab_steps": 5, "targets": 2, "square_queries": 20}


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
