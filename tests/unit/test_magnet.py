"""MagNet: its two auto-encoders, its thresholds and its detectors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.auxiliary_aware import AuxiliaryAware
from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.methods._magnet_autoencoder import FlatAutoencoder, PooledAutoencoder
from purifiers.methods.magnet import Magnet, divergence, thresholds

from . import toys
from .toys import INDICES, LABELS, SHAPE, Toy


@pytest.fixture
def classifier() -> Toy:
    return toys.toy()


def magnet(classifier: Classifier | None = None, **parameters: Any) -> Magnet:
    torch.manual_seed(5)
    method = Magnet(**parameters)
    method.bind(classifier, SHAPE)
    return method


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# (kernel 9 x inputs + bias) x outputs of each convolution, one after the other
@pytest.mark.parametrize(
    ("make", "channels", "layers"),
    [
        (PooledAutoencoder, 1, [(1, 3), (3, 3), (3, 3), (3, 3), (3, 1)]),
        (FlatAutoencoder, 1, [(1, 3), (3, 3), (3, 1)]),
        (FlatAutoencoder, 3, [(3, 3), (3, 3), (3, 3)]),
    ],
)
def test_sizes_of_the_paper(make, channels, layers):
    network = make(channels, 3, "sigmoid")
    assert count(network) == sum((9 * inputs + 1) * outputs for inputs, outputs in layers)
    found = [(m.in_channels, m.out_channels) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert found == layers


def test_documented_counts():
    method = magnet()
    assert (count(method.pooled), count(method.flat)) == (310, 142)
    assert count(magnet(variant="single_scale")) == 142


def test_the_pooled_one_pools_and_upsamples_in_the_papers_order(images):
    network = PooledAutoencoder(1, 3, "sigmoid")
    hidden = torch.sigmoid(network.encoder1(images))
    hidden = torch.sigmoid(network.encoder2(functional.avg_pool2d(hidden, 2)))
    hidden = functional.interpolate(torch.sigmoid(network.decoder1(hidden)), scale_factor=2)
    kernel, bias = network.decoder2.weight, network.decoder2.bias
    hidden = torch.sigmoid(functional.conv2d(hidden, kernel, bias, padding=1))
    torch.testing.assert_close(network(images), torch.sigmoid(network.output(hidden)))


@pytest.mark.parametrize("side", [7, 8])
def test_odd_sides_keep_their_shape(side):
    given = torch.rand(2, 3, side, side)
    for network in (PooledAutoencoder(3, 3, "relu"), FlatAutoencoder(3, 3, "relu")):
        made = network(given)
        assert made.shape == given.shape
        assert made.min() >= 0 and made.max() <= 1


def test_training_loss_is_the_error_against_the_clean_images(images):
    method = magnet(noise=0.0).train()
    expected = sum(functional.mse_loss(net(images), images) for net in (method.pooled, method.flat))
    loss = method.fit_loss(images, LABELS, INDICES, 0)
    torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_training_noise_is_gaussian_and_clipped():
    seen: list[Tensor] = []
    method = magnet(variant="single_scale", noise=0.1).train()
    method.flat.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    grey = torch.full((500, *SHAPE), 0.5)
    for seed in (0, 0, 1):
        method.fit_loss(grey, LABELS, INDICES, seed)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert float((seen[0] - grey).std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float((seen[0] - grey).mean())) < 0.003
    method.fit_loss(torch.zeros(500, *SHAPE), LABELS, INDICES, 0)
    assert seen[-1].min() == 0.0
    assert float((seen[-1] > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_marks_are_mean_square_and_mean_absolute_errors(images):
    method = magnet()
    marks = method.marks(images)
    assert marks.shape == (6, 2)
    first = [functional.mse_loss(method.pooled(x[None]), x[None]) for x in images]
    second = [functional.l1_loss(method.flat(x[None]), x[None]) for x in images]
    torch.testing.assert_close(marks, torch.stack([torch.stack(first), torch.stack(second)], dim=1))
    single = magnet(variant="single_scale")
    error = (single.purify(images) - images).abs().flatten(1).mean(dim=1, keepdim=True)
    torch.testing.assert_close(single.marks(images), error)


def test_temperatures_add_divergences_of_image_and_reformed_image(classifier, images):
    method = magnet(classifier, variant="single_scale", temperatures=[1.0, 10.0])
    marks = method.marks(images)
    assert marks.shape == (6, 3)
    for column, temperature in ((1, 1.0), (2, 10.0)):
        one, two = (
            torch.softmax(classifier(x) / temperature, dim=1)
            for x in (images, method.purify(images))
        )
        middle = (one + two) / 2
        expected = sum((p * (p / middle).log()).sum(dim=1) / 2 for p in (one, two))
        torch.testing.assert_close(marks[:, column], expected, rtol=1e-3, atol=1e-7)


def test_divergence_in_closed_form():
    sure = torch.tensor([[200.0, 0.0], [0.0, 0.0], [3.0, 1.0]])
    other = torch.tensor([[0.0, 200.0], [0.0, 0.0], [5.0, 3.0]])
    expected = torch.tensor([math.log(2.0), 0.0, 0.0])  # disjoint, the same, the same
    torch.testing.assert_close(divergence(sure, other), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(divergence(other, sure), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "rate", "dropped"), [(5000, 0.001, 5), (100, 0.05, 5), (999, 0.001, 0), (7, 0.0, 0)]
)
def test_thresholds_drop_the_stated_share(size, rate, dropped):
    marks = torch.rand(size, 3, generator=torch.Generator().manual_seed(2))
    above = (marks > thresholds(marks, rate)).sum(dim=0)
    assert above.tolist() == [dropped] * 3


def fitted(classifier: Classifier | None, folder: Path, **parameters: Any) -> tuple[Magnet, Tensor]:
    """A MagNet after two epochs, and the images that it held out."""
    method = magnet(classifier, batch_size=32, validation=0.25, **parameters).train()
    pixels = np.random.default_rng(0).integers(0, 256, (200, *SHAPE), dtype=np.uint8)
    seen: list[Tensor] = []

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if not method.training:
            seen.append(images)
        return method.fit_loss(images, labels, indices, seed)

    recipe = replace(method.recipe, epochs=2)
    fit(method, loss, pixels, np.zeros(200, np.int64), recipe, 0, folder / "c", "id", "label")
    assert len(torch.cat(seen)) == 2 * 50  # once per epoch
    frozen(method)
    return method, torch.cat(seen)[:50]


def test_fitting_sets_thresholds_by_the_held_out_images_alone(classifier, tmp_path):
    method, held_out = fitted(classifier, tmp_path, temperatures=[10.0], drop_rate=0.1)
    assert torch.isfinite(method.thresholds).all()
    above = (method.marks(held_out) > method.thresholds * (1 + 1e-6)).sum(dim=0)
    assert above.tolist() == [5, 5, 5]  # of the weights that were kept, not of earlier ones
    detected = int(method.detected(held_out).sum())
    assert 5 <= detected <= 15


def test_thresholds_are_saved_with_the_weights(tmp_path):
    method, held_out = fitted(None, tmp_path)
    other = magnet()
    assert not other.detected(held_out).any()  # nothing before it is fitted
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.detector_logit(held_out), method.detector_logit(held_out))


def test_verdict_is_the_logarithm_of_the_largest_ratio(images):
    method = magnet()
    marks = method.marks(images).detach()
    method.thresholds.copy_(torch.tensor([marks[0, 0] / 2.0, marks[0, 1] * 4.0]))
    assert method.detector_logit(images)[0].item() == pytest.approx(math.log(2.0), abs=1e-5)
    assert bool(method.detected(images)[0])
    method.thresholds.copy_(torch.tensor([marks[0, 0] * 2.0, marks[0, 1] * 4.0]))
    assert method.detector_logit(images)[0].item() == pytest.approx(-math.log(2.0), abs=1e-5)
    assert not bool(method.detected(images)[0])


def test_an_auxiliary_aware_attack_gets_past_the_detectors(classifier, images):
    method = magnet(classifier)
    frozen(method)
    method.thresholds.copy_(0.9 * method.marks(images).amin(dim=0))
    assert method.detected(images).all()
    attack = AuxiliaryAware(eps=0.3, step_size=0.05, steps=20, trade_off=1.0)
    fooling = attack(Defence(classifier, [method]), images, LABELS)
    assert (method.detector_logit(fooling) < method.detector_logit(images)).all()
    assert not method.detected(fooling).any()


def test_gradients_reach_the_image_through_the_reformer(images):
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(magnet().purify(leaf).square().sum(), leaf)
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"variant": "mnist"}, "choose one of two_scale, single_scale"),
        ({"activation": "tanh"}, "choose one of sigmoid, relu"),
        ({"drop_rate": 1.0}, r"drop_rate is .*, but takes a number in \[0, 1\)"),
        ({"drop_rate": -0.1}, r"drop_rate is .*, but takes a number in \[0, 1\)"),
        ({"validation": 0.0}, r"validation is 0.0, but takes a number in \(0, 1\)"),
        ({"noise": -0.1}, "noise is -0.1, but takes a number of at least 0"),
        (
            {"temperatures": [10.0, 0.0]},
            r"temperatures is \[10.0, 0.0\], .*each a number above 0",
        ),
    ],
)
def test_bad_parameters_are_refused(parameters, words):
    with pytest.raises(UserError, match=words):
        Magnet(**parameters)


def test_temperatures_need_a_classifier():
    with pytest.raises(UserError, match="need a classifier"):
        magnet(temperatures=[10.0])
