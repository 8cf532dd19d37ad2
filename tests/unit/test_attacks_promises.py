"""What every attack promises: independence of the batch, an untouched model, loud failure."""

from __future__ import annotations

import pytest
import torch

from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.formula import evaluate

SETTINGS = {
    "fgsm": {"eps": 0.1},
    "pgd": {"eps": 0.1, "step_size": 0.025, "steps": 6},
    "mim": {"eps": 0.1, "step_size": 0.025, "steps": 6},
    "deepfool_linf": {"eps": 0.1, "steps": 6},
    "cw_l2": {"steps": 15, "search_steps": 2, "initial_const": 1.0, "learning_rate": 0.05},
    "autoattack": {
        "eps": 0.1, "apgd_steps": 4, "fab_steps": 4, "targets": 2, "square_queries": 10,
    },
    "autoattack_l2": {
        "radius": 1.0, "apgd_steps": 4, "fab_steps": 4, "targets": 2, "square_queries": 10,
    },
    "apgd": {"eps": 0.1, "steps": 8},
    "bim": {"eps": 0.1, "step_size": 0.025, "steps": 6},
    "pgd_l2": {"radius": 1.0, "step_length": 0.3, "steps": 6},
    "square": {"eps": 0.15, "queries": 200},
    "spsa": {"eps": 0.1, "steps": 10, "samples": 32, "learning_rate": 0.03},
    "stadv": {"steps": 20},
}  # fmt: skip
BY_BATCH = ("autoattack", "autoattack_l2")


def make(name):
    return build(registry.load("attack", name), **SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_lowers_accuracy(victim, name):
    adversarial = make(name)(victim.model, victim.images, victim.labels)
    assert victim.accuracy(adversarial) < victim.accuracy(victim.images) - 0.2


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in BY_BATCH])
def test_batches_and_batch_mates_do_not_matter(victim, name):
    attack = make(name)
    images, labels = victim.images[:24], victim.labels[:24]
    indices = torch.arange(40, 64)
    whole = attack(victim.model, images, labels, seed=2, indices=indices)
    parts = [
        attack(victim.model, images[rows], labels[rows], seed=2, indices=indices[rows])
        for rows in torch.arange(24).split(7)
    ]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    mixed = attack(victim.model, images[order], labels[order], seed=2, indices=indices[order])
    # a sign decided by rounding may flip, so a few pixels may differ
    for other in (torch.cat(parts), mixed[order.argsort()]):
        assert ((whole - other).abs() > 1e-4).float().mean() < 0.002
    assert registry.load("attack", name).traits.batch_dependent is False


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in BY_BATCH])
def test_indices_follow_their_images(victim, name):
    """Also after the broken images have dropped out."""
    clean = victim.images.flatten(1)
    sizes = set()

    def target(images, indices):
        nearest = torch.cdist(images.detach().flatten(1), clean).argmin(dim=1)
        # C&W walks so far that an image may come close to another one
        assert (nearest == indices - 500).float().mean() > 0.9
        sizes.add(len(images))
        return victim.model(images)

    target.per_image = True
    drops = "stop" in registry.describe("attack", name).parameters
    parameters = SETTINGS[name] | ({"stop": "success"} if drops else {})
    attack = build(registry.load("attack", name), **parameters)
    attack(target, victim.images, victim.labels, indices=torch.arange(64) + 500)
    assert len(sizes) > 1 or name == "fgsm"


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_that_are_not_finite_are_an_error(victim, name):
    def broken(x):
        return victim.model(x) * torch.where(x[:, :1, 0, 0] >= 0, float("nan"), 1.0)

    with pytest.raises(RuntimeError, match="not finite"):
        make(name)(broken, victim.images[:4], victim.labels[:4])


@pytest.mark.parametrize("name", SETTINGS)
def test_one_bad_image_is_enough(victim, name):
    def broken(x):
        wide = x.flatten(1).mean(dim=1, keepdim=True) > 0.9
        return torch.where(wide, float("nan"), victim.model(x))

    images = torch.cat([victim.images[:3], torch.ones(1, 1, 8, 8)])
    with pytest.raises(RuntimeError, match="not finite"):
        make(name)(broken, images, victim.labels[:4])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_model_stays_as_it_was(name):
    """Trainable parameters and training mode belong to the caller."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Dropout(0.0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.rand(4, 1, 8, 8)
    given = images.clone()
    make(name)(model, images, model(images).argmax(dim=1))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(images, given)


@pytest.mark.parametrize("name", SETTINGS)
def test_works_where_gradients_are_switched_off(victim, name):
    args = (victim.model, victim.images[:6], victim.labels[:6])
    with torch.no_grad():
        quiet = make(name)(*args)
        assert not torch.is_grad_enabled()
    assert torch.equal(quiet, make(name)(*args))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_images(victim, name):
    empty = make(name)(victim.model, victim.images[:0], victim.labels[:0])
    assert empty.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_file_declares_its_price(name):
    described = registry.describe("attack", name)
    assert not described.required
    assert set(described.traits.budget) <= set(described.parameters)
    passes = evaluate(described.traits.passes, described.parameters)
    assert passes > 0


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in ("autoattack", "cw_l2")])
def test_price_is_not_exceeded(victim, name):
    """PASSES bounds the forwards that were really made (a backward counts two more)."""
    forwards = 0

    def counted(x):
        nonlocal forwards
        forwards += len(x)
        return victim.model(x)

    attack = make(name)
    attack(counted, victim.images, victim.labels)
    described = registry.describe("attack", name)
    passes = evaluate(described.traits.passes, vars(attack))
    assert forwards <= passes * len(victim.images)
