"""Attacks under the policy of a device, on CPU tensors: no host reads per step, same results."""

from __future__ import annotations

import pytest
import torch

import purifiers
from purifiers.attacks._steady import SteadyDescent
from purifiers.core import active
from purifiers.core.target import as_target

from .host_reads import host_reads

SIGNED = {"eps": 0.1, "step_size": 0.02}
CW = {"search_steps": 1, "initial_const": 1.0}
EVERY_STEP = [
    ("pgd", {**SIGNED, "steps": 9}),
    ("pgd", {**SIGNED, "steps": 9, "restarts": 2}),
    ("bim", {**SIGNED, "steps": 9}),
    ("mim", {**SIGNED, "steps": 9}),
    ("apgd", {"eps": 0.1, "steps": 9}),
    ("apgd", {"eps": 0.1, "steps": 9, "loss": "dlr_targeted", "targets": 2}),
    ("pgd_l2", {"radius": 1.0, "steps": 9}),
    ("square", {"eps": 0.1, "queries": 80}),
    ("stadv", {"steps": 9}),
    ("spsa", {"eps": 0.1, "steps": 9, "samples": 8}),
]
ATTACKS = [
    *((name, {**parameters, "stop": stop}) for name, parameters in EVERY_STEP for stop in
      ("never", "success")),
    ("cw_l2", {**CW, "steps": 30}),
    ("cw_l2", {"steps": 45, "search_steps": 3}),
    ("cw_l2", {"steps": 45, "search_steps": 3, "confidence": 0.5, "abort_early": False}),
    ("deepfool_l2", {}),
    ("deepfool_l2", {"clip_sum": True, "candidates": 3}),
    ("deepfool_linf", {}),
]  # fmt: skip
LOOKS = 8
"""Reads of the mask allowed per attack: after 1, 2, 4, 8, ... steps."""


@pytest.fixture
def device_policy(monkeypatch):
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)


def run(victim, name, parameters, count=None):
    attack = purifiers.attack(name, **parameters)
    return attack(lambda x: victim.model(x), victim.images[:count], victim.labels[:count], seed=5)


@pytest.mark.parametrize(
    "name, parameters", ATTACKS, ids=[" ".join(map(str, (n, *p.values()))) for n, p in ATTACKS]
)
def test_policies_agree(victim, monkeypatch, name, parameters):
    expected = run(victim, name, parameters, 60)
    assert int(victim.correct(victim.images).sum()) > 0  # else nothing is attacked
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    result = run(victim, name, parameters, 60)
    # batches of other sizes round differently
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


STOPPING = [
    *((name, {**SIGNED, "steps": 6}, {"steps": 12}) for name in ("pgd", "bim", "mim")),
    ("apgd", {"eps": 0.1, "steps": 6}, {"steps": 12}),
    ("pgd_l2", {"radius": 1.0, "steps": 6}, {"steps": 12}),
    ("square", {"eps": 0.05, "queries": 20}, {"queries": 40}),
    ("stadv", {"steps": 6}, {"steps": 12}),
    ("spsa", {"eps": 0.05, "samples": 4, "steps": 6}, {"steps": 12}),
]


@pytest.mark.parametrize(
    "name, parameters, longer, same",
    [
        *((n, {**p, "stop": "never"}, longer, True) for n, p, longer in STOPPING),
        *((n, {**p, "stop": "success"}, longer, False) for n, p, longer in STOPPING),
        ("cw_l2", {**CW, "steps": 40}, {"steps": 80}, False),
    ],
)
def test_no_host_read_per_step(victim, monkeypatch, device_policy, name, parameters, longer, same):
    reads = []
    for steps in ({}, longer):
        with host_reads(monkeypatch) as counted:
            run(victim, name, {**parameters, **steps}, 32)
        reads.append(sum(counted.values()))
    assert reads[1] <= 12 + (0 if same else LOOKS)
    assert not same or reads[0] == reads[1]


def test_deepfool_reads_once_per_linearisation(victim, monkeypatch, device_policy):
    """A linearisation is ten passes, so a late look would cost more than a wait."""
    reads = []
    for steps in (2, 4):
        with host_reads(monkeypatch) as counted:
            run(victim, "deepfool_l2", {"steps": steps, "overshoot": 0.0}, 32)
        reads.append(sum(counted.values()))
    assert reads[1] - reads[0] <= 2


def test_cpu_drops_at_once(victim, monkeypatch):
    """Without the device policy, broken images leave the batch in the step that breaks them."""
    sizes = []

    def model(images):
        sizes.append(len(images))
        return victim.model(images)

    attack = purifiers.attack("bim", eps=0.3, step_size=0.05, steps=9, stop="success")
    attack(model, victim.images[:60], victim.labels[:60])
    on_cpu, sizes = sizes, []
    assert len(set(on_cpu)) > 3
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    attack(model, victim.images[:60], victim.labels[:60])
    assert set(sizes) <= {60, 30, 15, 8, 4} and len(set(sizes)) > 1


@pytest.mark.parametrize("broken", ["logits", "gradients"])
def test_values_that_are_not_finite_still_end_the_attack(
    victim, monkeypatch, device_policy, broken
):
    calls = []

    def model(images):
        calls.append(len(images))
        logits = victim.model(images)
        if len(calls) != 2:
            return logits
        if broken == "logits":
            return logits + float("nan")
        # sqrt has an infinite slope at 0: finite logits, broken gradient
        return logits + (images.clamp_min(0.0) * 0).sqrt().sum()

    attack = purifiers.attack("mim", **SIGNED, steps=5)
    with pytest.raises(RuntimeError, match="not finite"):
        attack(model, victim.images[:8], victim.labels[:8])
    assert len(calls) == 5  # checked at the end
    monkeypatch.undo()
    calls.clear()
    with pytest.raises(RuntimeError, match="not finite"):
        attack(model, victim.images[:8], victim.labels[:8])
    assert len(calls) == 2  # checked at once


def test_confirmation_in_float32_takes_a_few_sizes(victim, monkeypatch, device_policy):
    """A model in low precision that calls every image broken; half of them are not."""
    wrong = torch.arange(10) < 5
    sizes = []

    class Low(torch.nn.Module):
        def forward(self, images):
            return torch.eye(3)[torch.zeros(len(images), dtype=torch.int64)]

        def exact(self, images):
            sizes.append(len(images))
            return torch.eye(3)[torch.where(images.flatten(1)[:, 0] > 0.5, 0, 1)]

    images = wrong.float().view(-1, 1, 1, 1).expand(10, 1, 2, 2)
    target, labels = as_target(Low()), torch.ones(10, dtype=torch.int64)
    labels[9] = 0  # correct in low precision, so not asked about
    unbroken = target.unbroken(target(images, labels), images, labels, torch.arange(10))
    assert unbroken.tolist() == [False] * 5 + [True] * 5
    assert sizes == [10]
    labels[3:] = 0
    target.unbroken(target(images, labels), images, labels, torch.arange(10))
    assert sizes == [10, 3]


def test_device_descends_without_coasting(victim, monkeypatch, device_policy):
    called = []
    plain = SteadyDescent.run
    monkeypatch.setattr(SteadyDescent, "run", lambda self: called.append(1) or plain(self))
    run(victim, "cw_l2", {**CW, "steps": 5}, 8)
    assert called
