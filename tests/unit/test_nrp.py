"""NRP: its generators' sizes, the self-supervised perturbation, the losses and the noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.classifiers.resnet_v2 import ResnetV2
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.noise import normal
from purifiers.methods._nrp import RepresentationPurifier
from purifiers.methods._nrp_critic import (
    RelativisticCritic,
    critic_loss,
    generator_loss,
    relativistic_loss,
)
from purifiers.methods._nrp_generators import ResG, Rrdb
from purifiers.methods.nrp import Nrp
from purifiers.methods.nrp_dynamic import NrpDynamic

SHAPE = (2, 12, 12)
SMALL: dict[str, Any] = {
    "blocks": 2, "channels": 6, "eps": 0.2, "attack_step": 0.05, "attack_steps": 3,
    "epochs": 1, "batch_size": 8, "learning_rate": 1e-3,
}  # fmt: skip


def shown(images: Tensor) -> Tensor:
    """The features of :class:`Square`."""
    return (1.0 + images).square()


class Square(Classifier):
    """f(x) = (1 + x)^2, a vector of means behind it, and no weight but a silent one."""

    TAPS = ("pixels", "vector")

    def __init__(self) -> None:
        super().__init__(SHAPE, 2)
        self.silent = nn.Parameter(torch.zeros(()))

    def features(self, images, taps):
        every = {"pixels": shown(images), "vector": images.mean(dim=(2, 3), keepdim=True)}
        return [every[tap] for tap in taps]

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class Blind(Classifier):
    """Shows no features."""


def made(cls: type[RepresentationPurifier] = Nrp, **changes: Any) -> RepresentationPurifier:
    torch.manual_seed(3)
    method = cls(**(SMALL | changes))
    method.bind(frozen(Square()), SHAPE)  # type: ignore[arg-type]
    return method


def some_images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# generators


@pytest.mark.parametrize(("cls", "count"), [(ResG, 1_702_211), (Rrdb, 16_550_275)])
def test_sizes_of_upstreams_networks(cls, count):
    with torch.device("meta"):
        network = cls(3, 64, 23)
    ends = (3 * 9 * 64 + 64) + (64 * 9 * 3 + 3)
    residual = 2 * (64 * 9 * 64 + 64)
    dense = sum((64 + 32 * k) * 9 * 32 + 32 for k in range(4)) + (64 + 128) * 9 * 64 + 64
    assert count == ends + 23 * (residual if cls is ResG else 3 * dense)
    assert size(network) == count


def test_defaults_are_upstreams_smaller_network():
    method = Nrp()
    with torch.device("meta"):
        method.bind(None, (3, 32, 32))
    assert isinstance(method.generator, ResG) and size(method.generator) == 1_702_211
    assert (method.eps, method.attack_step, method.attack_steps) == (16 / 255, 0.01, 100)
    weights = (method.adversarial_weight, method.pixel_weight, method.feature_weight)
    assert weights == (5e-3, 0.01, 1.0)


def test_resg_by_hand():
    torch.manual_seed(0)
    network = ResG(2, 5, 3).double()
    first, _, *blocks, last = network
    for block in blocks:  # biases and weights that would show a mistake
        for weight in block.parameters():
            nn.init.normal_(weight, std=0.3)
    images = torch.rand(3, 2, 7, 6).double()
    hidden = F.leaky_relu(F.conv2d(images, first.weight, first.bias, padding=1), 0.1)
    for block in blocks:
        inner = F.relu(F.conv2d(hidden, block.conv1.weight, block.conv1.bias, padding=1))
        hidden = hidden + F.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
    expected = F.conv2d(hidden, last.weight, last.bias, padding=1)
    torch.testing.assert_close(network(images), expected)


def test_rrdb_by_hand():
    """Three dense blocks of five convolutions, each scaled by .2, and .2 around the three."""
    torch.manual_seed(0)
    network = Rrdb(2, 6, 2).double()
    first, *groups, last = network

    def convolved(layer, hidden):
        return F.conv2d(hidden, layer.weight, layer.bias, padding=1)

    images = torch.rand(3, 2, 7, 6).double()
    hidden = convolved(first, images)
    for group in groups:
        inner = hidden
        for dense in group.blocks:
            seen = [inner]
            for layer in dense.growing:
                assert layer.out_channels == 3
                seen.append(F.leaky_relu(convolved(layer, torch.cat(seen, 1)), 0.2))
            inner = inner + 0.2 * convolved(dense.last, torch.cat(seen, 1))
        hidden = hidden + 0.2 * inner
    torch.testing.assert_close(network(images), convolved(last, hidden))


def test_initial_weights_of_residual_blocks():
    """He normal over fan-in, a tenth of it; biases 0."""
    torch.manual_seed(0)
    block = ResG(3, 64, 1)[2]
    for layer in (block.conv1, block.conv2):
        assert layer.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / (64 * 9)), rel=0.02)
        assert not layer.bias.any()


# the relativistic critic


def test_relativistic_loss_by_hand():
    """Jolicoeur-Martineau 2019: each score against the mean of the other side's."""
    higher, lower = torch.tensor([1.0, 3.0]), torch.tensor([0.0, -1.0])
    sigmoid = torch.sigmoid
    above = -(sigmoid(higher - lower.mean()).log()).mean()
    below = -((1 - sigmoid(lower - higher.mean())).log()).mean()
    torch.testing.assert_close(relativistic_loss(higher, lower), (above + below) / 2)
    same = torch.full((4,), 2.5)
    assert relativistic_loss(same, same).item() == pytest.approx(math.log(2))
    assert relativistic_loss(lower, higher) > math.log(2) > relativistic_loss(higher, lower)


def test_an_offset_of_all_scores_means_nothing():
    higher, lower = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(
        relativistic_loss(higher + 3, lower + 3), relativistic_loss(higher, lower)
    )


def test_critic_and_generator_exchange_roles():
    torch.manual_seed(0)
    critic = RelativisticCritic(SHAPE, 4)
    real, fake = some_images(6), torch.rand(6, *SHAPE, requires_grad=True)
    torch.testing.assert_close(critic_loss(critic, real, fake), generator_loss(critic, fake, real))
    critic_loss(critic, real, fake).backward()
    assert fake.grad is None and all(p.grad is not None for p in critic.parameters())
    critic.zero_grad(set_to_none=True)
    generator_loss(critic, real, fake).backward()
    assert fake.grad is not None and fake.grad.any()
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize(
    ("height", "layers", "left"), [(4, 1, 2), (16, 2, 4), (28, 3, 4), (32, 3, 4), (64, 4, 4)]
)
def test_the_critic_halves_down_to_four(height, layers, left):
    critic = RelativisticCritic((1, height, height), 4)
    convolutions = [layer for layer in critic.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 8, 16, 32][:layers]
    assert critic.layers(torch.rand(1, 1, height, height)).shape[-2:] == (left, left)
    assert critic(torch.rand(3, 1, height, height)).shape == (3,)


# the self-supervised perturbation


def test_perturbation_climbs_to_the_corner():
    """|f(x') - f(x)| is largest at x + eps for every pixel of [.5, .8]."""
    images = 0.5 + 0.3 * some_images(4)
    method = made(attack_steps=12)
    wanted = method.features(images)
    perturbed = method.perturb(images, wanted, torch.arange(4), 0)
    distance = (perturbed - images).abs()
    assert distance.max() <= 0.2 + 1e-6 and perturbed.min() >= 0 and perturbed.max() <= 1
    torch.testing.assert_close(distance, torch.full_like(distance, 0.2))


def test_one_step_by_hand():
    images = 0.4 + 0.2 * some_images(5)
    method = made(attack_steps=1, attack_step=0.03, eps=0.1)
    none = made(attack_steps=1, attack_step=0.0, eps=0.1)
    wanted, indices = method.features(images), torch.arange(5)
    start = none.perturb(images, wanted, indices, 7)
    assert 0.09 < (start - images).abs().max() <= 0.1 + 1e-6
    gradient = 4 * (shown(start) - shown(images)) * (1 + start)
    expected = (start + 0.03 * gradient.sign()).clamp(images - 0.1, images + 0.1)
    torch.testing.assert_close(method.perturb(images, wanted, indices, 7), expected)


def test_perturbation_belongs_to_the_image():
    images, method = some_images(6), made()
    wanted, indices = method.features(images), torch.arange(10, 16)
    whole = method.perturb(images, wanted, indices, 1)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(
        method.perturb(images[rows], wanted[rows], indices[rows], 1), whole[rows]
    )
    assert not torch.equal(method.perturb(images, wanted, indices, 2), whole)


@pytest.mark.parametrize(
    ("classifier", "tap", "listened"),
    [
        (WideResnet((1, 16, 16), 10, depth=10, widen_factor=1), "deepest", "stage3"),
        (WideResnet((1, 16, 16), 10, depth=10, widen_factor=1), "conv1", "conv1"),
        (ResnetV2((1, 16, 16), 10, depth=11, width=4), "deepest", "stage3"),
        (Square(), "deepest", "pixels"),  # the vector behind it has no rows and columns
        (Square(), "vector", "vector"),
    ],
)
def test_which_features_count(classifier, tap, listened):
    method = Nrp(**(SMALL | {"tap": tap}))
    frozen(classifier)
    method.bind(classifier, classifier.shape)
    images = torch.rand(2, *classifier.shape)
    (expected,) = classifier.features(images, [listened])
    assert torch.equal(method.features(images), expected)


# training


def gradients(method: RepresentationPurifier, part: str) -> list[Tensor | None]:
    return [parameter.grad for parameter in method.get_submodule(part).parameters()]


def test_loss_by_hand():
    """w_f |f(G(x')) - f(x)| + w_p (G(x') - x)^2 + w_a relativistic."""
    images, indices = some_images(6), torch.arange(6)
    method = made(feature_weight=2.0, pixel_weight=0.3, adversarial_weight=0.7)
    assert method.critic is not None
    method.critic.requires_grad_(False)
    wanted = shown(images)
    fake = method.generator(method.perturb(images, wanted, indices, 5))
    expected = (
        2.0 * (shown(fake) - wanted).abs().mean()
        + 0.3 * (fake - images).square().mean()
        + 0.7 * generator_loss(method.critic, images, fake)
    )
    torch.testing.assert_close(method.fit_loss(images, torch.zeros(6), indices, 5), expected)


def test_each_network_learns_from_its_own_loss_alone():
    images, labels, indices = some_images(8), torch.zeros(8), torch.arange(8)
    found, losses = {}, {}
    for learns, other in (("critic", "generator"), ("generator", "critic")):
        method = made(adversarial_weight=0.5)
        method.get_submodule(other).requires_grad_(False)
        loss = method.fit_loss(images, labels, indices, 5)
        loss.backward()
        assert all(gradient is None for gradient in gradients(method, other))
        found[learns], losses[learns] = gradients(method, learns), loss.detach()
    both = made(adversarial_weight=0.5)
    loss = both.fit_loss(images, labels, indices, 5)
    loss.backward()
    torch.testing.assert_close(loss.detach(), losses["critic"] + losses["generator"])
    for part, expected in found.items():
        for mine, theirs in zip(gradients(both, part), expected, strict=True):
            assert theirs is not None and theirs.any()
            torch.testing.assert_close(mine, theirs)


def test_without_its_weight_there_is_no_critic():
    alone, game = made(adversarial_weight=0.0), made()
    assert alone.critic is None and alone.recipe.turns == ()
    assert not any(name.startswith("critic") for name in alone.state_dict())
    assert game.recipe.turns == (("critic", 1), ("generator", 1))


@pytest.mark.parametrize("weight", [0.0, 0.005])
def test_training_lowers_the_feature_distance(weight, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (48, *SHAPE), dtype=np.uint8)
    method = made(adversarial_weight=weight, epochs=24, learning_rate=0.01)
    images, indices = torch.from_numpy(pixels[:16]).float() / 255, torch.arange(16)
    wanted = method.features(images)
    perturbed = method.perturb(images, wanted, indices, 9)

    def distance() -> float:
        with torch.no_grad():
            return float((method.features(method.purify(perturbed)) - wanted).abs().mean())

    before = distance()
    fit(
        method, method.fit_loss, pixels, np.zeros(48, dtype=np.int64), method.recipe, 0,
        tmp_path / "checkpoint", "nrp", "nrp",
    )  # fmt: skip
    assert distance() < 0.6 * before


# purification


@pytest.mark.parametrize("generator", ["resg", "rrdb"])
def test_one_pass_and_an_exact_gradient(generator):
    method = made(generator=generator)
    frozen(method)
    images = some_images(4).requires_grad_(True)
    expected = method.generator(images).clamp(0, 1)
    assert torch.equal(method.purify(images), expected)
    (gradient,) = torch.autograd.grad(method.purify(images).square().sum(), images)
    (by_hand,) = torch.autograd.grad(expected.square().sum(), images)
    assert torch.equal(gradient, by_hand) and gradient.any()


def test_dynamic_adds_clipped_noise():
    method = made(NrpDynamic, noise=0.5, eps=0.2)
    frozen(method)
    images, indices = some_images(4), torch.tensor([8, 3, 5, 2])
    shift = (0.5 * normal(6, indices, SHAPE, tag="nrp_dynamic")).clamp(-0.2, 0.2)
    assert (shift.abs() == 0.2).any()
    expected = method.generator((images + shift).clamp(0, 1)).clamp(0, 1)
    assert torch.equal(method.purify(images, 6, indices), expected)


def test_dynamic_without_noise_is_static():
    static, dynamic = made(), made(NrpDynamic, noise=0.0)
    images = some_images(4)
    assert torch.equal(static.purify(images), dynamic.purify(images, 1))


def test_an_attacker_sees_which_one_is_random():
    classifier = frozen(Square())
    for cls, random in ((Nrp, False), (NrpDynamic, True)):
        defence = Defence(classifier, [frozen(made(cls))], gradient="exact", seed=0)
        assert defence.stochastic is random
    same = Nrp.traits.replace(random=True, fit=Nrp.traits.fit.replace(inference_only=("noise",)))
    assert NrpDynamic.traits == same and not Nrp.traits.random


def test_purifies_without_a_classifier_but_is_not_fitted():
    method = Nrp(**SMALL)
    method.bind(None, SHAPE)
    assert method.purify(some_images(2)).shape == (2, *SHAPE)
    with pytest.raises(UserError, match="bind a classifier"):
        method.fit_loss(some_images(2), torch.zeros(2), torch.arange(2), 0)


# bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "resnet"}, "choose one of resg, rrdb"),
        ({"blocks": 0}, "blocks is 0"),
        ({"attack_steps": 0}, "attack_steps is 0"),
        ({"attack_step": 4}, "write 4/255"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is -1.0"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        made(**changes)
    assert "\n" not in str(raised.value)


def test_negative_noise_is_refused():
    with pytest.raises(UserError, match=r"noise is -0\.1"):
        NrpDynamic(noise=-0.1)


def test_classifiers_that_show_nothing():
    with pytest.raises(UserError, match=r"Blind has no inner representations.*wide_resnet"):
        Nrp().bind(Blind(SHAPE, 2), SHAPE)
    classifier = WideResnet((1, 16, 16), 10, depth=10, widen_factor=1)
    with pytest.raises(UserError, match="no tap 'stage4'"):
        Nrp(tap="stage4").bind(classifier, classifier.shape)
