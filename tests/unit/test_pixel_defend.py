"""PixelDefend: PixelCNN++'s size and causality, its mixture by hand, and cached decoding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from purifiers.core.component import build, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.datasets.digits import Digits
from purifiers.methods._pixel_cnn import (
    Grown,
    Mixture,
    PixelCnn,
    Shifted,
    to_pixels,
)
from purifiers.methods._pixel_cnn_decoding import Decoder, choose, decode, decode_naively
from purifiers.methods.pixel_defend import HALVED_EVERY, PixelDefend

GREY, COLOUR = (1, 8, 8), (3, 8, 8)
SMALL: dict[str, Any] = {
    "scales": 2, "blocks": 1, "filters": 5, "mixtures": 2, "dropout": 0.0, "batch_size": 8,
    "epochs": 1,
}  # fmt: skip


def network(channels: int, scales: int = 3, blocks: int = 1, seed: int = 0) -> PixelCnn:
    """In double precision, with weights of which none is at its initial value."""
    torch.manual_seed(seed)
    made = PixelCnn(
        channels, scales=scales, blocks=blocks, filters=5, mixtures=3, dropout=0.5
    ).double()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, Shifted | Grown):
                layer.length += 0.4 * torch.randn_like(layer.length)
                layer.bias += 0.3 * torch.randn_like(layer.bias)
    frozen(made)
    return made


def some_levels(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed))


def made(shape: tuple[int, ...] = GREY, **changes: Any) -> PixelDefend:
    torch.manual_seed(3)
    method = build(PixelDefend, **(SMALL | changes))
    method.bind(None, shape)
    return method


# the network


def derived(channels: int, filters: int, mixtures: int) -> int:
    """Parameters at 3 scales and 5 blocks: each output has a length and a bias beside its
    weights."""

    def layer(inputs: int, outputs: int, taps: int) -> int:
        return taps * inputs * outputs + 2 * outputs

    def gated(taps: int, skips: int) -> int:
        skip = layer(2 * skips * filters, filters, 1) if skips else 0
        return layer(2 * filters, filters, taps) + layer(2 * filters, 2 * filters, taps) + skip

    first = sum(layer(channels + 1, filters, taps) for taps in (6, 3, 2))
    up = 15 * (gated(6, 0) + gated(4, 1))
    down = (5 + 6 + 6) * (gated(6, 1) + gated(4, 2))
    between = 4 * (layer(filters, filters, 6) + layer(filters, filters, 4))
    return first + up + down + between + layer(filters, {1: 3, 3: 10}[channels] * mixtures, 1)


@pytest.mark.parametrize(
    "channels, filters, expected",
    [(3, 160, 53_659_080), (1, 160, 53_644_220), (1, 40, 3_369_500)],
)
def test_parameters_at_the_papers_size(channels, filters, expected):
    with torch.device("meta"):
        size = PixelCnn(channels, scales=3, blocks=5, filters=filters, mixtures=10, dropout=0.5)
    assert sum(p.numel() for p in size.parameters()) == expected
    assert derived(channels, filters, 10) == expected


def test_blocks_of_each_scale():
    with torch.device("meta"):
        size = PixelCnn(3, scales=3, blocks=5, filters=4, mixtures=2, dropout=0.5)
    assert [len(blocks) for blocks in size.up] == [5, 5, 5]
    assert [len(blocks) for blocks in reversed(size.down)] == [5, 6, 6]


def test_weight_normalisation():
    """Each output's weights have the length that the layer says, whatever the direction's is."""
    torch.manual_seed(0)
    for layer, axis in ((Shifted(3, 4, (2, 3)), 0), (Grown(4, (2, 2)), 1)):
        with torch.no_grad():
            layer.length.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
            layer.direction *= 7.0
        lengths = layer.weight.transpose(0, axis).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, layer.length)


@pytest.mark.parametrize("kernel", [(2, 3), (2, 2)])
def test_growing_doubles_the_map_and_stays_causal(kernel):
    """The adjoint of the shrinking convolution with the same weights."""
    torch.manual_seed(0)
    grown, shrunk = Grown(3, kernel).double(), Shifted(3, 3, kernel, 2).double()
    weight = grown.weight.detach()
    small, large = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 3, 8, 8).double()
    assert grown(small).shape == large.shape
    side = kernel[1] // 2 if kernel[1] == 3 else 0
    padded = F.pad(large, (side, side, 0, 0))
    expected = (F.conv2d(padded, weight, stride=2) * small).sum()
    torch.testing.assert_close((grown(small) * large).sum(), expected)
    assert shrunk(large).shape == small.shape


@pytest.mark.parametrize("channels, scales", [(1, 1), (1, 2), (3, 3)])
def test_causality(channels, scales):
    """An output does not depend on its own pixel nor on later ones, and on all the rows above and
    the pixels to the left that are near."""
    torch.manual_seed(1)
    net = network(channels, scales)
    pixels = torch.rand(1, channels, 8, 8).double() * 2 - 1
    reached = torch.zeros(64, 64, dtype=torch.bool)
    pixels.requires_grad_(True)
    flat = net(pixels).square().sum(dim=1).flatten()
    for place in range(64):
        (slope,) = torch.autograd.grad(flat[place], pixels, retain_graph=True)
        reached[place] = slope.abs().sum(dim=(0, 1)).flatten() > 0
    earlier = torch.ones(64, 64).tril(diagonal=-1).bool()
    assert not (reached & ~earlier).any()
    for row, column in ((3, 3), (4, 5), (7, 7)):
        place = 8 * row + column
        near = [place - 1, place - 8, place - 9] + [place - 7] * (column < 7)
        assert reached[place, near].all()


# the mixture


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_of_all_levels_sum_to_one(channels):
    torch.manual_seed(0)
    output = 3.0 * torch.randn(5, 4 * {1: 3, 3: 10}[channels]).double()
    mixture, levels = Mixture(output, channels), torch.arange(256).expand(5, 256)
    known = torch.rand(5, channels).double() * 2 - 1
    for channel in range(channels):
        found = mixture.log_probabilities(levels, known[:, :channel])
        torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(5).double())


def test_a_mixture_by_hand():
    """Two logistics; the mean of blue is coupled to red and green (Salimans et al., equation 3)."""
    torch.manual_seed(0)
    output = torch.randn(20).double()
    known = torch.tensor([0.3, -0.6]).double()
    found = Mixture(output[None], 3).log_probabilities(torch.arange(256)[None], known[None])[0]
    weights = output[:2].softmax(0)
    each = output[2:].view(3, 3, 2)  # channel; mean, scale or coefficient; logistic
    coefficients = each[:, 2].tanh()
    mean = each[2, 0] + coefficients[1] * known[0] + coefficients[2] * known[1]
    for level in (0, 1, 77, 254, 255):
        value = level / 127.5 - 1.0
        upper = torch.sigmoid((value + 1 / 255 - mean) / each[2, 1].exp())
        lower = torch.sigmoid((value - 1 / 255 - mean) / each[2, 1].exp())
        upper = torch.ones(2) if level == 255 else upper
        lower = torch.zeros(2) if level == 0 else lower
        expected = (weights * (upper - lower)).sum().log()
        torch.testing.assert_close(found[level], expected)


def test_probabilities_far_from_the_mean_are_still_told_apart():
    """Where a difference of two distribution functions would be 0, and in single precision."""
    output = torch.tensor([[0.0, 5.0, -9.0]])  # the mean above white, the smallest scale
    found = Mixture(output, 1).log_probabilities(torch.arange(256)[None], torch.empty(1, 0))
    assert torch.isfinite(found).all()
    assert (found.diff(dim=1) > 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_nearby_are_those_of_the_logarithms(channels):
    """At the ends too; outside them there are none."""
    torch.manual_seed(0)
    mixture = Mixture(3.0 * torch.randn(6, 4 * {1: 3, 3: 10}[channels]).double(), channels)
    middle, reach = torch.tensor([[0], [1], [100], [200], [254], [255]]), 90
    levels = middle + torch.arange(-reach, reach + 1)
    known = torch.rand(6, channels).double() * 2 - 1
    for channel in range(channels):
        found = mixture.nearby_probabilities(middle, reach, known[:, :channel])
        there = (levels >= 0) & (levels <= 255)
        expected = mixture.log_probabilities(levels, known[:, :channel]).exp()
        torch.testing.assert_close(found, expected.where(there, 0.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_chosen_far_from_the_mean(dtype):
    """Between probabilities that are 0 as a number: the one nearest to the mean above white."""
    output = torch.tensor([[0.0, 5.0, -9.0], [0.0, 0.0, -1.0]], dtype=dtype)
    wanted = torch.tensor([[40], [128]])
    assert Mixture(output, 1).nearby_probabilities(wanted, 9, output[:, :0])[0].max() == 0
    assert choose(output, wanted, 9).tolist() == [[49], [127]]


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_the_loss_is_minus_the_logarithm_of_the_probability(shape):
    """Of each level among all 256, in bits, averaged over all dimensions."""
    method = made(shape)
    frozen(method).double()
    levels = some_levels(2, shape)
    loss = method.fit_loss(levels.double() / 255, torch.zeros(2), torch.arange(2), 0)
    output, total = method.network(to_pixels(levels, torch.float64)), 0.0
    everything = torch.arange(256)[None]
    for image in range(2):
        for place in range(64):
            row, column = divmod(place, 8)
            mixture = Mixture(output[image, :, row, column][None], shape[0])
            pixel = levels[image, :, row, column]
            for channel in range(shape[0]):
                known = to_pixels(pixel[None, :channel], torch.float64)
                found = mixture.log_probabilities(everything, known)[0].exp()
                total -= math.log2(found[pixel[channel]] / found.sum())
    assert loss.item() == pytest.approx(total / levels.numel())


def test_gradients_are_finite_at_the_darkest_and_brightest_levels():
    method = made(COLOUR).train()
    levels = torch.tensor([0, 255]).repeat(3 * 32).view(1, *COLOUR)
    method.fit_loss(levels / 255.0, torch.zeros(1), torch.arange(1), 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


# decoding


@pytest.mark.parametrize(
    "channels, scales, blocks, height, width",
    [(1, 1, 2, 5, 7), (1, 2, 1, 6, 10), (1, 3, 1, 12, 8), (3, 3, 2, 8, 8), (3, 3, 1, 4, 12)],
)
def test_cached_decoding_is_the_naive_one(channels, scales, blocks, height, width):
    net, levels = network(channels, scales, blocks), some_levels(3, (channels, height, width))
    cached = decode(net, levels, 40)
    assert torch.equal(cached, decode_naively(net, levels, 40))
    assert (cached != levels).float().mean() > 0.5
    # and so are the outputs, for pixels that are settled whatever was found likely
    decoder, expected = Decoder(net, levels), net(to_pixels(levels, torch.float64))
    for row in range(height):
        decoder.start(row)
        for column in range(width):
            found = decoder.output(row, column)
            torch.testing.assert_close(found, expected[:, :, row, column], rtol=0, atol=1e-9)
            decoder.settle(row, column, levels[:, :, row, column])
    assert torch.equal(decoder.levels, levels)


def test_naive_decoding_can_stop_early():
    net, levels = network(1, 1), some_levels(2, GREY)
    part = decode_naively(net, levels, 30, pixels=11).flatten(1)
    assert torch.equal(part[:, :11], decode_naively(net, levels, 30).flatten(1)[:, :11])
    assert torch.equal(part[:, 11:], levels.flatten(1)[:, 11:])


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_each_value_is_the_most_likely_one_in_its_ball(shape):
    """By going through all levels; green knows the red that was chosen."""
    net, levels, reach = network(shape[0], 2), some_levels(2, shape), 9
    found = decode(net, levels, reach)
    output = net(to_pixels(found, torch.float64))
    everything = torch.arange(256).expand(2, 256)
    for row, column in ((0, 0), (2, 5), (7, 7)):
        mixture = Mixture(output[:, :, row, column], shape[0])
        pixel = found[:, :, row, column]
        for channel in range(shape[0]):
            known = to_pixels(pixel[:, :channel], torch.float64)
            likely = mixture.log_probabilities(everything, known)
            far = (everything - levels[:, channel, row, column, None]).abs() > reach
            expected = likely.masked_fill(far, -math.inf).argmax(dim=1)
            assert torch.equal(pixel[:, channel], expected)


def test_the_lowest_of_equally_likely_levels():
    """A logistic around grey, between two levels: both are as likely, bit for bit."""
    output = torch.zeros(1, 3).double()
    mixture = Mixture(output, 1)
    both = mixture.log_probabilities(torch.tensor([[127, 128]]), output[:, :0])[0]
    assert both[0] == both[1]
    assert choose(output, torch.tensor([[130]]), 20).item() == 127


# the method


def test_images_stay_in_the_ball_of_whole_levels():
    """Around the rounded image: what upstream's cast cuts off is not lost."""
    method = made(COLOUR, eps="10/255")
    frozen(method)
    images = torch.rand(3, *COLOUR)
    purified = method.purify(images)
    levels = 255 * purified
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    moved = (levels.round() - (255 * images).round()).abs()
    assert moved.max() == 10
    nothing = made(COLOUR, eps=0.9 / 255)
    frozen(nothing)
    torch.testing.assert_close(nothing.purify(images), (255 * images).round() / 255)


def test_an_image_is_purified_alike_alone_and_among_others():
    method = made(GREY, eps=0.2)
    frozen(method)
    images = torch.rand(4, *GREY)
    whole = method.purify(images)
    assert torch.equal(torch.cat([method.purify(image[None]) for image in images]), whole)


def test_it_is_purified_with_the_average_of_the_weights():
    """Step n has a share of at most (1 + n) / (10 + n); the average begins at the first weights."""
    method = made(average=0.15).train()
    images, labels, indices = torch.rand(2, *GREY), torch.zeros(2), torch.arange(2)
    first = parameters_to_vector(method.network.parameters()).detach().clone()
    torch.testing.assert_close(method.averaged, first)
    expected = first.clone()
    for kept in (0.1, 0.15, 0.15):
        with torch.no_grad():
            for parameter in method.network.parameters():
                parameter.add_(0.1)
        newest = parameters_to_vector(method.network.parameters()).detach()
        expected = kept * expected + (1 - kept) * newest
        method.fit_loss(images, labels, indices, 0)
    torch.testing.assert_close(method.averaged, expected)
    method.eval().fit_loss(images, labels, indices, 0)
    assert method.steps.item() == 3
    purified = frozen(method).purify(images)  # type: ignore[operator]
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.zero_()
    assert torch.equal(method.purify(images), purified)


def test_the_rate_is_halved_as_often_as_upstreams_decays():
    method = made(epochs=5000, batch_size=48)
    method.fit_on([], 50_000)
    steps = 1042 * 5000
    rates = [method.recipe.rate(step, steps) for step in range(0, steps, 50_000)]
    assert math.isclose(0.999995**HALVED_EVERY, 0.5, rel_tol=1e-5)
    for step, rate in zip(range(0, steps, 50_000), rates, strict=True):
        assert 1.0 - 1e-4 <= rate / (1e-3 * 0.999995**step) <= 2.0 + 1e-4
    short = made()
    short.fit_on([], 1000)
    assert short.recipe.milestones == ()
    assert short.recipe.betas == (0.95, 0.9995) and short.recipe.optimizer == "adam"


def test_fitting_lowers_the_loss_and_brings_noise_back(tmp_path: Path):
    """Digits with noise of up to 40 levels come out closer to the digits."""
    pixels, labels = Digits().load("train", tmp_path)
    method = made((1, 16, 16), eps="40/255", scales=1, filters=8, schedule="one_cycle")
    recipe = replace(method.recipe, epochs=2, batch_size=16, learning_rate=0.02)
    images = torch.from_numpy(np.array(pixels[500:516])).float() / 255
    before = method.eval().fit_loss(images, torch.zeros(16), torch.arange(16), 0).item()
    method.train()
    fit(method, method.fit_loss, pixels[:256], labels, recipe, 0, tmp_path / "c", "x", "x")
    frozen(method)
    after = method.fit_loss(images, torch.zeros(16), torch.arange(16), 0).item()
    assert after < before - 0.5
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = (images + 40 / 255 * noise).clamp(0, 1)
    purified = method.purify(noisy)
    assert (purified - images).abs().mean() < 0.9 * (noisy - images).abs().mean()
    dark = images == 0
    assert (purified - images)[dark].mean() < 0.2 * (noisy - images)[dark].mean()


# bad input


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 8, 8), "1 or 3 channels; these have 2"),
        ((1, 8, 6), r"8x6 images .* multiples of 4"),
        ((1, 7, 8), r"7x8 images .* multiples of 4"),
    ],
)
def test_images_that_it_cannot_take(shape, message):
    with pytest.raises(UserError, match=message):
        made(shape, scales=3)


@pytest.mark.parametrize(
    "name, value",
    [("scales", 0), ("blocks", 0), ("filters", 0), ("mixtures", 0), ("dropout", 1.0),
     ("average", 1.0), ("dropout", -0.1), ("eps", 8)],
)  # fmt: skip
def test_parameters_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=name):
        made(**{name: value})


def test_no_gradient_goes_through_it():
    method = made()
    frozen(method)
    leaf = torch.rand(1, *GREY, requires_grad=True)
    with pytest.raises(UserError, match="attack it with bpda"):
        method.purify(leaf)
    defence = Defence(lambda images: images.flatten(1), [method], gradient="bpda", seed=0)
    (slope,) = torch.autograd.grad(defence(leaf, torch.arange(1)).sum(), leaf)
    torch.testing.assert_close(slope, torch.ones_like(leaf))
