"""Comparison and fallback of recorded steps, with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch

import purifiers
from purifiers.attacks import _linf
from purifiers.core import active, capture
from purifiers.core.capture import Captured
from purifiers.core.component import Method
from purifiers.core.defence import Defence
from purifiers.core.evaluation import attacked_defence
from purifiers.core.prepare import Prepared


class Fake:
    """Records steps by calling them; ``wrong`` changes what a replay returns."""

    def __init__(self, wrong=lambda outputs: outputs, error=""):
        self.wrong, self.error = wrong, error
        self.recorded = self.replayed = 0

    def applies_to(self, inputs):
        return True

    def record(self, step, inputs):
        self.recorded += 1
        if self.error:
            raise RuntimeError(self.error)

        def replay(*inputs):
            self.replayed += 1
            return self.wrong(step(*inputs))

        return replay


def double(images):
    return 2 * images, images.sum(dim=1)


IMAGES = torch.rand(4, 500, generator=torch.Generator().manual_seed(0))


def run(step, calls=3):
    for call in range(calls):
        doubled, sums = step(IMAGES + call)
        assert torch.equal(doubled, 2 * (IMAGES + call))
        assert torch.equal(sums, (IMAGES + call).sum(dim=1))


def test_replayed_from_the_second_call_on():
    backend = Fake()
    step = Captured(double, backend=backend)
    assert step.path == ""
    run(step)
    assert step.path == "captured"
    assert (backend.recorded, backend.replayed) == (1, 3)  # one replay is the comparison's


@pytest.mark.parametrize(
    "backend, path",
    [
        (Fake(error="operation not\n permitted"), "recording failed: operation not permitted"),
        (Fake(lambda outputs: (outputs[0] * 1.01, outputs[1])), "of the replayed values differ"),
        (Fake(lambda outputs: (outputs[0] * torch.nan, outputs[1])), "100.0% of the replayed"),
        (Fake(lambda outputs: (outputs[0], outputs[1][:1])), "100.0% of the replayed"),
        (Fake(lambda outputs: outputs[:1]), None),
        (capture.CUDA_GRAPHS, "not on CUDA"),
    ],
)
def test_falls_back_to_eager(backend, path):
    step = Captured(double, backend=backend)
    if path is None:
        with pytest.raises(ValueError):
            step(IMAGES)
        return
    run(step)
    assert step.path.startswith("eager: ") and path in step.path
    assert getattr(backend, "recorded", 0) <= 1


@pytest.mark.parametrize("changed, captured", [(1, True), (10, False)])
def test_a_few_values_may_differ(changed, captured):
    def wrong(outputs):
        first = outputs[0].clone()
        first.view(-1)[:changed] += 1.0  # of 2000 values
        return first, outputs[1]

    step = Captured(double, backend=Fake(wrong))
    step(IMAGES)
    assert (step.path == "captured") == captured


def test_not_recorded_where_not_allowed():
    backend = Fake()
    step = Captured(double, allowed=lambda: False, backend=backend)
    run(step)
    assert step.path.startswith("eager: the model may") and not backend.recorded


def test_other_shapes_run_eagerly():
    backend = Fake()
    step = Captured(double, backend=backend)
    run(step)
    assert torch.equal(step(IMAGES[:2])[0], 2 * IMAGES[:2])
    assert backend.replayed == 3


@pytest.fixture
def on_device(monkeypatch):
    backend = Fake()
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    monkeypatch.setattr(_linf, "CUDA_GRAPHS", backend)
    return backend


@pytest.mark.parametrize("name", ["pgd", "bim", "mim"])
def test_attacks_replay_their_step(victim, on_device, name):
    attack = purifiers.attack(name, eps=0.1, step_size=0.02, steps=9)
    model = Prepared(victim.model)
    model.chunk = None
    adversarial = attack(model, victim.images[:20], victim.labels[:20])
    assert (attack.step_path, on_device.replayed) == ("captured", 9)
    expected = purifiers.attack(name, eps=0.1, step_size=0.02, steps=9)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(active, "reads_are_free", lambda device: True)
        torch.testing.assert_close(
            adversarial, expected(model, victim.images[:20], victim.labels[:20])
        )
    assert expected.step_path == ""  # nothing to record on a CPU


def test_only_traced_networks_without_purifiers_are_recorded(victim, on_device):
    attack = purifiers.attack("bim", eps=0.1, step_size=0.02, steps=9)
    prepared = Prepared(victim.model)
    prepared.chunk = None  # as on a device
    attack(Defence(prepared), victim.images[:4], victim.labels[:4])
    assert attack.step_path == "captured"
    for model in (victim.model, Defence(prepared, [DoesNothing()])):
        attack(model, victim.images[:4], victim.labels[:4])
        assert attack.step_path.startswith("eager: the model may")


def test_the_defence_that_a_stage_attacks_is_recorded(victim, on_device):
    """Its prepared network decides, not the classifier behind it."""
    attack = purifiers.attack("bim", eps=0.1, step_size=0.02, steps=9)
    defence = attacked_defence(victim.model, [], 0)
    defence.chunk = None  # as on a device
    attack(defence, victim.images[:4], victim.labels[:4])
    assert attack.step_path == "captured"


class DoesNothing(Method):
    """A purifier, which may run other code at each call."""

    def purify(self, images, seed, indices):
        return images
