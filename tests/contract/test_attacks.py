"""What every attack promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import noise
from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.core.precision import declared

from .conftest import Attackable


@pytest.fixture(scope="session")
def runs() -> dict:
    return {}


@pytest.fixture(scope="module")
def adversarial(attack, victim, runs) -> Tensor:
    """The attack on the victim, made once."""
    if attack.name not in runs:
        given = victim.images.clone()
        made = attack.make()(victim.logits, victim.images, victim.labels, 1, victim.indices)
        assert torch.equal(victim.images, given), "the attack wrote into the images it was given"
        runs[attack.name] = made
    return runs[attack.name]


def test_images_are_images(attack, victim, adversarial):
    assert adversarial.shape == victim.images.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0 and adversarial.max() <= 1


def test_stays_in_the_eps_ball(attack, victim, adversarial):
    made = attack.make()
    if made.traits.norm != "linf" or getattr(made, "eps", None) is None:
        pytest.skip(f"{attack.name} has no L-infinity ball (norm {made.traits.norm})")
    assert made.eps > 0
    assert (adversarial - victim.images).abs().max() <= made.eps + 1e-6


def test_lowers_accuracy(attack, victim, adversarial):
    if attack.description.traits.model_free:
        assert not torch.equal(adversarial, victim.images)
        pytest.skip(f"{attack.name} queries no model (model_free)")
    assert victim.accuracy(adversarial) < victim.accuracy(victim.images)


def test_same_seed_same_images(attack, victim, adversarial):
    """Whatever the global generator holds, which stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        before = torch.random.get_rng_state()
        again = attack.make()(victim.logits, victim.images, victim.labels, 1, victim.indices)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again, adversarial)


def test_another_seed_differs_only_through_noise(attack, victim, adversarial, monkeypatch):
    drawn, derive = [], noise.derive_seed

    def watched(*parts: int | str) -> int:
        drawn.append(parts)
        return derive(*parts)

    for module in (noise, attack.module):
        if hasattr(module, "derive_seed"):
            monkeypatch.setattr(module, "derive_seed", watched)
    other = attack.make()(victim.logits, victim.images, victim.labels, 2, victim.indices)
    if not torch.equal(other, adversarial):
        assert drawn, "the result depends on the seed, but no noise comes from purifiers.core.noise"


def test_batches_and_batch_mates_do_not_matter(attack, victim, adversarial):
    made = attack.make()
    if made.traits.batch_dependent:
        pytest.skip(f"{attack.name} depends on the batch (batch_dependent)")
    backwards = torch.arange(23, -1, -1)
    parts = [
        made(victim.logits, victim.images[r], victim.labels[r], 1, victim.indices[r])
        for r in backwards.split(10)
    ]
    other = torch.cat(parts).flip(0)
    # a sign decided by the last bit may flip
    assert ((other - adversarial).abs() > 1e-4).float().mean() < 0.002


def test_the_layout_of_the_images_changes_nothing(attack, attackable):
    """Images of colours lie in memory with the channels last; grey ones are the same either way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 8)
        images = torch.rand(4, 3, 8, 8)

    def model(x: Tensor) -> Tensor:
        return 20.0 * layer(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    labels = model(images).argmax(dim=1)
    given = [images, images.contiguous(memory_format=torch.channels_last)]
    plain, last = (attack.make()(attackable(model), x, labels, 1) for x in given)
    torch.testing.assert_close(plain, last)


def test_the_model_stays_as_it_was(attack, attackable):
    """Trainable parameters, their gradients and the mode belong to the caller."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(0.0))
        images = torch.rand(4, 1, 8, 8)
    model[1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack.make()(attackable(model), images, model(images).argmax(dim=1))
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_broken_model_is_an_error(attack, victim, attackable):
    """NaN logits must not count as robustness; a ``model_free`` attack asks for none."""
    asked = []

    def broken(images):
        asked.append(len(images))
        return victim.logits(images) * float("nan")

    if attack.description.traits.model_free:
        attack.make()(broken, victim.images, victim.labels)
        assert not asked
        return
    with pytest.raises(RuntimeError):
        attack.make()(attackable(broken), victim.images, victim.labels)
    assert asked


def test_no_images(attack, victim):
    empty = attack.make()(victim.logits, victim.images[:0], victim.labels[:0])
    assert empty.shape == (0, 1, 16, 16)


def test_defaults_make_an_attack(attack):
    build(attack.cls)


def test_unknown_parameter_is_refused_with_a_suggestion(attack):
    known = next(iter(attack.description.parameters))
    with pytest.raises(UserError, match=f"has no parameter '{known}x'.*did you mean '{known}'"):
        if attack.name == "_template":
            attack.description.check_parameters({f"{known}x": 1}, "attack")
        else:
            purifiers.attack(attack.name, **{f"{known}x": 1})


class Coarse(nn.Module):
    """Emulates a GPU that rounds the inputs of convolutions and products to 10 bits, as TF32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.exact = network
        for part in self.network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.data = rounded(part.weight.data)
                part.register_forward_pre_hook(lambda _, inputs: (coarsely(inputs[0]),))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) if declared() == "tf32" else self.exact(images)


def rounded(values: Tensor, bits: int = 10) -> Tensor:
    """Values with ``bits`` bits of mantissa."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def coarsely(values: Tensor) -> Tensor:
    """The same with the gradient of the identity."""
    return values + (rounded(values.detach()) - values.detach())


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_lower_precision_leaves_no_more_unbroken(attack, victim, precision, runs):
    """Judged in float32: at most one image in 256 more, at least one."""
    if attack.description.traits.model_free:
        pytest.skip(f"{attack.name} queries no model (model_free)")
    network = Coarse(victim.classifier) if precision == "tf32" else victim.classifier
    model = Attackable(network)
    unbroken = []
    for chosen in ("float32", precision):
        made = attack.make()(model, victim.images, victim.labels, 1, victim.indices, chosen)
        unbroken.append(round(victim.accuracy(made) * len(victim.images)))
    assert unbroken[1] <= unbroken[0] + max(1, len(victim.images) // 256)
