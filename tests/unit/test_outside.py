"""Defences and methods in other people's tools: they are modules, and random ones are random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.pgd import Pgd
from purifiers.core.defence import Defence
from purifiers.methods.identity import Identity
from purifiers.methods.random_sign import RandomSign
from purifiers.report.intervals import wilson

EPS, NOISE = 0.1, 0.15


def test_a_defence_is_a_module(victim):
    method = RandomSign(eps=NOISE)
    defence = Defence(victim.model, [method]).to(torch.float32).eval()
    assert len(list(defence.parameters())) == len(list(victim.model.parameters()))
    assert set(defence.state_dict()) == {f"classifier.{key}" for key in victim.model.state_dict()}
    chained = nn.Sequential(Identity(), victim.model)
    assert torch.equal(chained(victim.images), victim.model(victim.images))
    assert torch.equal(
        nn.Sequential(Defence(victim.model, [Identity()]))(victim.images),
        victim.model(victim.images),
    )


@pytest.mark.parametrize("gradient", ["exact", "bpda", "one_step", "second_order"])
def test_a_random_defence_is_random_and_reproducible(victim, gradient):
    def three(defence: Defence) -> list[Tensor]:
        return [defence(victim.images) for _ in range(3)]

    first, again = (three(Defence(victim.model, [RandomSign(eps=NOISE)], gradient)) for _ in "ab")
    for call, other in zip(first, again, strict=True):
        assert torch.equal(call, other)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    other_seed = Defence(victim.model, [RandomSign(eps=NOISE)], gradient, seed=1)
    assert not torch.equal(other_seed(victim.images), first[0])


def test_with_indices_the_noise_stays(victim):
    defence = Defence(victim.model, [RandomSign(eps=NOISE)])
    indices = torch.arange(len(victim.images)) + 7
    once = defence(victim.images, indices)
    defence(victim.images)
    assert torch.equal(defence(victim.images, indices), once)
    backwards = defence(victim.images.flip(0), indices.flip(0)).flip(0)
    torch.testing.assert_close(backwards, once)


def test_a_deterministic_defence_stays_as_it_is(victim):
    defence = Defence(victim.model, [Identity()])
    assert torch.equal(defence(victim.images), defence(victim.images))


def test_a_random_method_is_random_as_a_module(victim):
    first, again = RandomSign(eps=NOISE), RandomSign(eps=NOISE)
    calls = [first(victim.images) for _ in range(2)]
    assert not torch.equal(*calls)
    assert all(torch.equal(again(victim.images), call) for call in calls)


def correct(defence: Defence, images: Tensor, labels: Tensor, draws: int = 20) -> float:
    """Mean number of correct images over fresh draws."""
    with torch.no_grad():
        counts = [(defence(images).argmax(dim=1) == labels).sum() for _ in range(draws)]
    return float(torch.stack(counts).double().mean())


def eot_pgd(model: nn.Module, images: Tensor, labels: Tensor, steps: int, draws: int) -> Tensor:
    """PGD with expectation over transformation, as other libraries write it: repeated calls."""
    adversarial = images
    for _ in range(steps):
        leaf = adversarial.detach().requires_grad_(True)
        loss = sum(functional.cross_entropy(model(leaf), labels) for _ in range(draws))
        (gradient,) = torch.autograd.grad(loss, leaf)
        adversarial = adversarial + EPS / 4 * gradient.sign()
        adversarial = adversarial.clamp(images - EPS, images + EPS).clamp(0.0, 1.0)
    return adversarial.detach()


def test_eot_from_outside_is_as_strong_as_our_own(victim):
    """Before, every call had the same noise: EOT from outside averaged nothing.

    AutoAttack's package cannot be compared: it keeps the first draw that breaks an image.
    """
    images, labels = victim.images, victim.labels
    outside = eot_pgd(
        Defence(victim.model, [RandomSign(eps=NOISE)], seed=1), images, labels, steps=10, draws=10
    )
    own = Pgd(eps=EPS, step_size=EPS / 4, steps=10, random_start=False)(
        Defence(victim.model, [RandomSign(eps=NOISE)], seed=2, eot_samples=10), images, labels
    )
    judge = Defence(victim.model, [RandomSign(eps=NOISE)], seed=3)
    clean, *counts = (correct(judge, batch, labels) for batch in (images, outside, own))
    low, high = wilson(counts[1], len(images))
    assert low * len(images) <= counts[0] <= high * len(images), counts
    assert counts[1] < 0.8 * clean
