"""Attacks whatever the caller's torch settings, number types and models' habits are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import purifiers
from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.evaluation import attacked_defence, scored
from purifiers.core.noise import derive_seed, uniform

EPS = 0.1
GRADIENT_ATTACKS = {
    "pgd": {"eps": EPS, "steps": 4, "step_size": 0.05},
    "apgd": {"eps": EPS, "steps": 6},
    "pgd_l2": {"radius": 1.0, "steps": 4, "step_length": 0.5},
    "cw_l2": {"steps": 20, "search_steps": 2, "initial_const": 1.0, "learning_rate": 0.1},
    "deepfool_l2": {"steps": 4},
    "square": {"eps": EPS, "queries": 30},
    "spsa": {"eps": EPS, "steps": 2},
}


class InPlace(nn.Module):
    """Changes its input, as ``clamp_`` and ``sub_`` at the beginning of a forward pass do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.clamp_(0.1, 0.9))


def adversarial(name, model, victim, **call):
    attack = purifiers.attack(name, **GRADIENT_ATTACKS[name])
    return attack(model, victim.images, victim.labels, **call)


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_a_model_may_work_in_place(victim, name):
    images = victim.images.clone()
    wrapped = InPlace(victim.model).eval()
    pure = adversarial(name, lambda x: victim.model(x.clamp(0.1, 0.9)), victim)
    for model in (wrapped, wrapped.forward, attacked_defence(wrapped, [], 0)):
        found = adversarial(name, model, victim)
        assert torch.equal(victim.images, images)
        assert float((found - pure).abs().max()) < 1e-4, model


def test_scoring_leaves_the_images(victim):
    images = victim.images.clone()
    measured = scored(InPlace(victim.model), victim.images, images)
    assert torch.equal(victim.images, images) and float(measured.linf.max()) == 0.0


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("setting", ["float64", "inference", "no_grad", "requires_grad"])
def test_the_callers_settings_do_not_matter(victim, name, setting):
    expected = adversarial(name, victim.model, victim)
    images = victim.images
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
        context = {"inference": torch.inference_mode, "no_grad": torch.no_grad}
        with context.get(setting, torch.enable_grad)():
            attack = purifiers.attack(name, **GRADIENT_ATTACKS[name])
            given = images.clone().requires_grad_(True) if setting == "requires_grad" else images
            found = attack(victim.model, given, victim.labels)
        assert torch.get_default_dtype() == (
            torch.float64 if setting == "float64" else torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("name", [name for name in GRADIENT_ATTACKS if name != "spsa"])
def test_logits_in_low_precision(victim, name):
    found = adversarial(name, lambda x: victim.model(x).bfloat16(), victim)
    assert found.dtype == torch.float32
    assert victim.accuracy(found) < victim.accuracy(victim.images)


def test_integers_of_numpy_and_torch_are_integers(victim):
    assert derive_seed(np.int64(3), "a") == derive_seed(torch.tensor(3), "a") == derive_seed(3, "a")
    indices = torch.tensor([4, 9])
    assert torch.equal(uniform(np.int32(3), indices, (2,)), uniform(3, indices, (2,)))
    found = adversarial("pgd", victim.model, victim, seed=np.int64(3))
    assert torch.equal(found, adversarial("pgd", victim.model, victim, seed=3))
    assert not torch.equal(found, adversarial("pgd", victim.model, victim, seed=4))
    with pytest.raises(UserError, match=r"seed is 0\.5, but takes a whole number"):
        derive_seed(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [[7], torch.zeros(64), torch.zeros(64, 1, dtype=torch.int64)])
def test_one_index_per_image(victim, indices):
    with pytest.raises(UserError, match="one integer per image"):
        adversarial("pgd", victim.model, victim, indices=indices)
    with pytest.raises(UserError, match="one integer per image"):
        purifiers.method("random_sign").purify(victim.images, 0, indices)


class BreaksAt(nn.Module):
    """Predicts class 0 in its first ``k`` queries and class 1 from then on."""

    def __init__(self, network: nn.Module, k: int) -> None:
        super().__init__()
        self.network, self.k, self.queries = network, k, 0

    def forward(self, images):
        self.queries += 1
        favourite = torch.zeros(10)
        favourite[0 if self.queries <= self.k else 1] = 10.0
        return self.network(images) * 1e-3 + favourite


WITH_STOP = [
    name
    for name in registry.names("attack")
    if "stop" in registry.describe("attack", name).parameters
]


@pytest.mark.parametrize("name", WITH_STOP)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_all_images_broken_at_once(victim, name, k):
    declared = registry.describe("attack", name).parameters
    sizes = {"eps": EPS, "radius": 1.0, "steps": 3, "queries": 4, "step_length": 0.5}
    chosen = {key: value for key, value in sizes.items() if key in declared}
    attack = purifiers.attack(name, stop="success", **chosen)
    labels = torch.zeros(64, dtype=torch.int64)
    model = BreaksAt(victim.model, k).eval()
    found = attack(model, victim.images, labels)
    assert found.shape == victim.images.shape
