"""Defense-GAN: its networks' sizes, WGAN-GP by hand, and the descent step by step."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.noise import generator, normal
from purifiers.datasets.digits import Digits
from purifiers.methods._wgan import (
    Critic,
    Generator,
    _Deconvolution,
    critic_loss,
    generator_loss,
    gradient_penalty,
)
from purifiers.methods.defense_gan import DefenseGan

GREY, COLOUR = (1, 12, 12), (3, 12, 12)
SMALL: dict[str, Any] = {
    "latent": 6, "width": 4, "steps": 9, "restarts": 3, "learning_rate": 5.0, "batch_size": 8,
    "generator_iterations": 3, "critic_steps": 2, "generator_learning_rate": 1e-3,
}  # fmt: skip


def made(shape: tuple[int, ...] = GREY, **changes: Any) -> DefenseGan:
    torch.manual_seed(3)
    method = DefenseGan(**(SMALL | changes))
    method.bind(None, shape)
    for name, weight in method.named_parameters():  # biases that would show a mistake
        if name.endswith("bias"):
            nn.init.uniform_(weight, -0.2, 0.2)
    return method


def ready(shape: tuple[int, ...] = GREY, **changes: Any) -> DefenseGan:
    method = made(shape, **changes)
    frozen(method)
    return method


def some_images(count: int, shape: tuple[int, ...] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# networks


def test_sizes_of_upstreams_mnist_networks():
    dense, first = 128 * 4096 + 4096, 25 * 256 * 128 + 128
    last = 25 * 128 * 64 + 64 + 25 * 64 * 1 + 1
    assert dense + first + last == 1_554_177
    assert size(Generator((1, 28, 28), 128, 64)) == 1_554_177
    convolutions = (25 * 1 * 64 + 64) + (25 * 64 * 128 + 128) + (25 * 128 * 256 + 256)
    assert size(Critic((1, 28, 28), 64)) == convolutions + 4 * 4 * 256 + 1


@pytest.mark.parametrize(
    ("shape", "upwards", "downwards", "final"),
    [
        ((1, 16, 16), [256, 128, 1], [1, 64, 128], 4),
        ((1, 28, 28), [256, 128, 64, 1], [1, 64, 128, 256], 4),
        ((3, 32, 32), [256, 128, 64, 3], [3, 64, 128, 256], 4),
        ((3, 64, 64), [256, 128, 64, 64, 3], [3, 64, 128, 256], 8),
    ],
)
def test_networks_of_every_size(shape, upwards, downwards, final):
    """Upstream's CelebA generator is the one for 64x64; for 32x32 it lacks one doubling."""
    network, critic = Generator(shape, 128, 64), Critic(shape, 64)
    assert [layer.in_channels for layer in network.layers] == upwards[:-1]
    assert [layer.out_channels for layer in network.layers] == upwards[1:]
    convolutions = [layer for layer in critic.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.in_channels for layer in convolutions] == downwards[:-1]
    assert [layer.out_channels for layer in convolutions] == downwards[1:]
    assert critic.layers[-1].in_features == downwards[-1] * final**2
    pixels = network(3 * torch.randn(2, 128)).detach()
    assert pixels.shape == (2, *shape) and critic(pixels).shape == (2,)
    low, high = float(pixels.min()), float(pixels.max())
    assert (low >= 0 and high <= 1) if shape[0] == 1 else (-1 <= low < 0 < high <= 1)


def tensorflow_deconvolution(hidden: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """A mirrored layer as conv2d_transpose with padding SAME: 1 row is cut above, 2 below."""
    assert layer.bias is not None
    size = 2 * hidden.shape[-1]
    whole = F.conv_transpose2d(hidden, layer.weight.flip(2, 3), layer.bias, stride=2)
    assert whole.shape[-1] == size + 3
    return whole[..., 1 : size + 1, 1 : size + 1]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_a_generator_by_hand(shape):
    """ReLU after the linear layer and the first two deconvolutions; nothing between the last two
    of the form for 64x64."""
    torch.manual_seed(0)
    network = Generator(shape, 7, 5).double()
    codes = torch.randn(3, 7).double()
    hidden = F.relu(codes @ network.dense.weight.T + network.dense.bias).view(3, 20, 4, 4)
    for place, layer in enumerate(network.layers):
        hidden = tensorflow_deconvolution(hidden.flip(2, 3), layer).flip(2, 3)
        if shape[1] == 28 and place == 0:
            assert hidden.shape[-1] == 8
            # upstream's [:7] of the mirrored map
            hidden = hidden.flip(2, 3)[:, :, :7, :7].flip(2, 3)
        if place < 2:
            hidden = F.relu(hidden)
    expected = torch.sigmoid(hidden) if shape[0] == 1 else torch.tanh(hidden)
    torch.testing.assert_close(network(codes), expected)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_a_deconvolution_as_a_convolution(channels):
    """The same images, gradients of input and weights, and gradients of these."""
    torch.manual_seed(0)
    layer = _Deconvolution(6, channels).double()
    hidden = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for found in (
        layer(hidden),
        F.conv_transpose2d(hidden, layer.weight, layer.bias, 2, 2, 1),
    ):
        wanted = (hidden, layer.weight, layer.bias)
        first = torch.autograd.grad(found.sin().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), (hidden, layer.weight))
        results.append((found, *first, *second))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_initial_weights():
    """Uniform; variance 4 / (fan-in + fan-out) for convolutions, 2 / (...) for linear layers."""
    torch.manual_seed(0)
    network, critic = Generator((1, 28, 28), 128, 64), Critic((1, 28, 28), 64)
    for layer, variance in (
        (network.dense, 2 / (128 + 4096)),
        (network.layers[0], 4 / (256 * 25 / 4 + 128 * 25)),
        (critic.layers[2], 4 / (64 * 25 + 128 * 25 / 4)),
    ):
        weight = layer.weight.detach()
        assert weight.var().item() == pytest.approx(variance, rel=0.02)
        assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.01)
        assert not layer.bias.any()


# WGAN-GP


class Linear(nn.Module):
    """x to the sum of w x: its slope is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels * self.weight).flatten(1).sum(dim=1)


def test_gradient_penalty_of_a_linear_critic():
    """(|w| - 1)^2 with the norm over all axes, and its own gradient 2 (|w| - 1) w / |w|."""
    weight = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    critic, points = Linear(weight), torch.rand(5, 2, 3, 4).double()
    penalty = gradient_penalty(critic, points)
    norm = weight.square().sum().sqrt()
    torch.testing.assert_close(penalty, (norm - 1).square())
    rows_only = (weight.square().sum(dim=1).sqrt() - 1).square().mean()  # upstream's axis
    assert not torch.isclose(penalty, rows_only)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, 2 * (norm - 1) * weight / norm)


def test_gradient_penalty_is_taken_at_each_point():
    """Of the critic sum x^2 / 2 the slope is x itself."""
    points = torch.rand(4, 1, 3, 3).double()

    class Square(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.square().flatten(1).sum(dim=1) / 2

    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(Square(), points), expected)


def test_losses_by_hand():
    torch.manual_seed(0)
    critic = Critic(GREY, 4).double()
    real, fake = (torch.rand(6, *GREY).double() for _ in range(2))
    share = torch.rand(6, 1, 1, 1).double()
    points = (1 - share) * real + share * fake
    expected = critic(fake).mean() - critic(real).mean() + 7 * gradient_penalty(critic, points)
    torch.testing.assert_close(critic_loss(critic, real, fake, share, 7.0), expected)
    fake.requires_grad_(True)
    loss = generator_loss(critic, fake)
    torch.testing.assert_close(loss, -critic(fake).mean())
    loss.backward()
    assert fake.grad is not None and fake.grad.any()
    assert all(weight.grad is None for weight in critic.parameters())


def gradients(method: DefenseGan, part: str) -> list[Tensor | None]:
    return [parameter.grad for parameter in method.get_submodule(part).parameters()]


def test_each_network_learns_from_its_own_loss_alone():
    """Together their gradients are those that each has when it is its turn."""
    images, labels, indices = some_images(8), torch.zeros(8), torch.arange(8)
    found, losses = {}, {}
    for learns in ("critic", "generator"):
        method = made()
        frozen(method).get_submodule(learns).requires_grad_(True)
        loss = method.fit_loss(images, labels, indices, 5)
        loss.backward()
        other = "generator" if learns == "critic" else "critic"
        assert all(gradient is None for gradient in gradients(method, other))
        found[learns], losses[learns] = gradients(method, learns), loss.detach()
    both = made()
    loss = both.fit_loss(images, labels, indices, 5)
    loss.backward()
    torch.testing.assert_close(loss.detach(), losses["critic"] + losses["generator"])
    for part, expected in found.items():
        for mine, theirs in zip(gradients(both, part), expected, strict=True):
            assert theirs is not None
            torch.testing.assert_close(mine, theirs)
        assert sum(theirs.any() for theirs in expected) >= len(expected) - 1  # a score's offset


PIXELS = np.random.RandomState(0).randint(0, 256, (20, *GREY), dtype=np.uint8)


class Killed(Exception):
    pass


class Watched:
    """A method's loss that keeps what it was given, and may be killed."""

    def __init__(self, method: DefenseGan, kill_at: int | None = None) -> None:
        self.method, self.kill_at = method, kill_at
        self.given: list[tuple[Any, ...]] = []

    def __call__(self, *given: Any) -> Tensor:
        if len(self.given) == self.kill_at:
            raise Killed
        self.given.append(given)
        return self.method.fit_loss(*given)


def train(method: DefenseGan, folder: Path, kill_at: int | None = None) -> Watched:
    recipe = replace(method.recipe, checkpoint_seconds=0.0)
    loss, checkpoint = Watched(method, kill_at), folder / "checkpoint"
    fit(method.train(), loss, PIXELS, np.zeros(20, np.int64), recipe, 4, checkpoint, "gan", "gan")
    return loss


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_is_two_optimizers_in_turn(tmp_path):
    """Two of the critic, one of the generator, each with an Adam (.5, .9) of its own."""
    method, by_hand = made(), made()
    loss = train(method, tmp_path)
    assert len(loss.given) == 3 * (2 + 1)
    assert not same(method, by_hand)
    optimizers = {
        name: torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9))
        for name, part in by_hand.named_children()
    }
    for turn, given in zip(["critic", "critic", "generator"] * 3, loss.given, strict=True):
        other = "generator" if turn == "critic" else "critic"
        by_hand.get_submodule(turn).requires_grad_(True)
        by_hand.get_submodule(other).requires_grad_(False)
        optimizers[turn].zero_grad()
        by_hand.fit_loss(*given).backward()
        optimizers[turn].step()
    assert same(method, by_hand)
    assert all(parameter.requires_grad for parameter in method.parameters())


@pytest.mark.parametrize("kill_at", [1, 2, 3, 7])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, kill_at):
    """Within the critic's turns as well as between turns."""
    whole = made()
    train(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        train(made(), tmp_path, kill_at)
    torch.manual_seed(99)  # another process: nothing but the checkpoint is left
    again = made()
    for weight in again.parameters():
        nn.init.normal_(weight)
    assert len(train(again, tmp_path).given) == 9 - kill_at
    assert same(again, whole)


def test_real_images_and_codes_of_the_training():
    """Codes N(0, 1) and shares U(0, 1) from the step's seed; colours in [-1, 1]."""
    method, images = made(COLOUR), some_images(8, COLOUR)
    frozen(method).critic.requires_grad_(True)
    loss = method.fit_loss(images, torch.zeros(8), torch.arange(8), 5)
    draw = generator(5, "defense_gan")
    codes = torch.randn(8, 6, generator=draw)
    share = torch.rand(8, 1, 1, 1, generator=draw)
    expected = critic_loss(method.critic, 2 * images - 1, method.generator(codes), share, 10.0)
    torch.testing.assert_close(loss, expected)


def test_training_brings_the_generator_nearer(tmp_path):
    images, labels = Digits().load("train", tmp_path)
    torch.manual_seed(0)
    method = DefenseGan(
        latent=16, width=8, generator_iterations=40, generator_learning_rate=1e-3, critic_steps=3,
        steps=20, restarts=2,
    )  # fmt: skip
    method.bind(None, images.shape[1:])
    shown = torch.from_numpy(images[:32]).float() / 255

    def error() -> float:
        return float((method.purify(shown) - shown).square().mean())

    before = error()
    fit(method, method.fit_loss, images, labels, method.recipe, 0, tmp_path / "c", "gan", "gan")
    assert error() < 0.75 * before


# the descent


def descended(method: DefenseGan, images: Tensor, restart: int, seed: int, indices: Any) -> Any:
    """Reconstructions and their errors of one restart, with torch's own optimizer, in double."""
    network = copy.deepcopy(method.generator).double()
    grey = images.shape[1] == 1
    pixels = images.double() if grey else 2 * images.double() - 1
    start = normal(seed, indices, (method.latent,), tag=f"defense_gan {restart}")
    latent = (start / math.sqrt(method.latent)).double().requires_grad_(True)
    optimizer = torch.optim.SGD([latent], lr=method.learning_rate, momentum=method.momentum)
    for step in range(method.steps - 1):  # upstream evaluates the code before the last step
        if step == math.ceil(0.8 * method.steps):
            optimizer.param_groups[0]["lr"] *= method.learning_rate_decay
        (gradient,) = torch.autograd.grad(
            ((network(latent) - pixels) ** 2).mean(dim=(1, 2, 3)).sum(), latent
        )
        latent.grad = gradient
        optimizer.step()
    found = network(latent).detach()
    errors = ((found - pixels) ** 2).mean(dim=(1, 2, 3))
    return (found if grey else (found + 1) / 2), errors


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("decay", [1.0, 0.1])
def test_purification_by_hand(shape, decay):
    """Momentum descent of each image's own error; the restart with the lowest one is taken."""
    method = ready(shape, learning_rate_decay=decay)
    images, indices = some_images(6, shape), torch.tensor([5, 0, 900, 3, 4, 77])
    restarts = [descended(method, images, r, 8, indices) for r in range(3)]
    errors = torch.stack([error for _, error in restarts])
    chosen = errors.argmin(dim=0)
    assert len(set(chosen.tolist())) > 1 and (errors.max(dim=0).values > errors.min(0).values).all()
    expected = torch.stack([restarts[r][0][place] for place, r in enumerate(chosen.tolist())])
    found = method.purify(images, 8, indices)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_more_restarts_are_never_worse():
    images = some_images(8)
    errors = []
    for restarts in (1, 2, 4):
        found = ready(restarts=restarts).purify(images)
        errors.append((found - images).square().mean(dim=(1, 2, 3)))
    assert (errors[1] <= errors[0] + 1e-7).all() and (errors[2] <= errors[1] + 1e-7).all()
    assert errors[2].mean() < errors[0].mean()


def test_batch_mates_do_not_matter(monkeypatch):
    """Nor where the codes are cut into chunks; each image has noise of its own."""
    method, images, indices = ready(), some_images(9), torch.arange(30, 39)
    whole = method.purify(images, 2, indices)
    order = torch.tensor([4, 8, 0, 2, 7, 1, 3, 6, 5])
    parts = [method.purify(images[rows], 2, indices[rows]) for rows in order.split(4)]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-6, rtol=0)
    monkeypatch.setattr("purifiers.methods.defense_gan.CHUNK", 4)
    torch.testing.assert_close(method.purify(images, 2, indices), whole, atol=1e-6, rtol=0)
    twice = method.purify(images[:1].expand(2, *GREY), 2, torch.tensor([1, 2]))
    assert not torch.equal(twice[0], twice[1])


def test_an_image_in_the_generators_range_is_found():
    method = ready(steps=400, restarts=4, learning_rate=20.0)
    codes = normal(1, range(5), (6,), tag="wanted") / math.sqrt(6)
    with torch.no_grad():
        images = method.generator(codes)
    far = (ready(steps=0).purify(images) - images).square().mean()
    assert (method.purify(images) - images).square().mean() < 1e-3 * far


def test_no_steps_leave_the_best_start():
    method, images = ready(steps=0, restarts=1), some_images(3)
    start = normal(4, range(3), (6,), tag="defense_gan 0") / math.sqrt(6)
    with torch.no_grad():
        torch.testing.assert_close(method.purify(images, 4), method.generator(start))


def test_bpda_is_the_only_gradient():
    method, images = ready(), some_images(2).requires_grad_(True)
    classify = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UserError, match="has no gradient; attack it with bpda"):
        Defence(classify, [method])(images)
    logits = Defence(classify, [method], gradient="bpda")(images)
    assert torch.autograd.grad(logits.sum(), images)[0].any()
    assert not method.purify(images.detach()).requires_grad


@pytest.mark.parametrize(
    ("parameters", "shape", "message"),
    [
        ({"restarts": 0}, GREY, "restarts is 0, but takes a whole number"),
        ({"critic_steps": 0}, GREY, "critic_steps is 0, but takes a whole number"),
        (
            {"generator_iterations": 0},
            GREY,
            "generator_iterations is 0, but takes a whole number of at least 1",
        ),
        ({}, (1, 12, 16), "no network for 12x16 images"),
        ({}, (1, 4, 4), "no network for 4x4 images"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, shape, message):
    with pytest.raises(UserError, match=message):
        DefenseGan(**parameters).bind(None, shape)
