"""AToP: DeepFillv2's networks, the random transforms, and the two trainings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import purifiers
from purifiers.core import fitting
from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.snapshots import weights_of
from purifiers.core.target import FIRST_DRAW
from purifiers.methods._block_masks import block_masks
from purifiers.methods._contextual_attention import attend
from purifiers.methods._deepfill import (
    Discriminator,
    GatedConvolution,
    Generator,
    discriminator_loss,
    generative_loss,
    generator_loss,
)
from purifiers.methods.atop import Atop

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {"width": 4, "discriminator_width": 4, "discriminator_depth": 2}
SHORT = {"epochs": 1, "batch_size": 6, "fine_tune_epochs": 2, "fine_tune_batch_size": 6}
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, *SHAPE, generator=DRAW)
LABELS = torch.arange(12) % 3
INDICES = torch.tensor([5, 0, 900, 3, 4, 77, 1, 2, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)
        return frozen(nn.Sequential(*layers))


def made(network: nn.Module | None = None, **parameters: Any) -> Atop:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        method = Atop(**{**SMALL, **SHORT, **parameters})
        method.bind(network, SHAPE)
    return method


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Networks


@pytest.mark.parametrize(("width", "expected"), [(48, 4_052_478), (24, 1_017_954), (16, 454_574)])
def test_the_networks_have_the_sizes_of_upstream(width: int, expected: int) -> None:
    generator = Generator(3, width)
    assert size(generator) == expected
    if width == 48:
        assert size(generator.coarse) == 1_631_151
        assert size(Discriminator(3, 64, 6)) == 5_946_816


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 30, 20), (3, 64, 64)])
def test_any_side_keeps_its_size(shape: tuple[int, ...]) -> None:
    pixels = torch.rand(2, *shape) * 2 - 1
    mask = (torch.rand(2, 1, *shape[1:]) < 0.25).float()
    for stage in Generator(shape[0], 4)(pixels, mask):
        assert stage.shape == pixels.shape and torch.isfinite(stage).all()


def test_gated_convolution_by_hand() -> None:
    layer = GatedConvolution(1, 1, kernel=3).double()
    kernels = torch.randn(2, 1, 3, 3, generator=DRAW).double()
    layer.convolution.weight.data.copy_(kernels)
    layer.convolution.bias.data.copy_(torch.tensor([0.3, -0.2]))  # type: ignore[union-attr]
    image = torch.randn(1, 1, 4, 5, generator=DRAW).double()
    padded = functional.pad(image, (1, 1, 1, 1))[0, 0]
    output = layer(image)[0, 0].detach()
    for row in range(4):
        for column in range(5):
            patch = padded[row : row + 3, column : column + 3]
            value = float((patch * kernels[0, 0]).sum()) + 0.3
            gate = float((patch * kernels[1, 0]).sum()) - 0.2
            value = value if value > 0 else math.exp(value) - 1
            assert float(output[row, column]) == pytest.approx(value / (1 + math.exp(-gate)))


def slowly_attended(features: Tensor, masked: Tensor) -> Tensor:
    """Contextual attention of one image (channels, 4, 4), position by position."""
    channels, side = features.shape[0], features.shape[1] // 2
    places = [(row, column) for row in range(side) for column in range(side)]

    def patch(row: int, column: int, source: Tensor) -> Tensor:
        padded = functional.pad(source[:, ::2, ::2], (1, 1, 1, 1))
        return padded[:, row : row + 3, column : column + 3]

    similar: dict[Any, float] = {}
    for a in places:
        for b in places:
            known = patch(*a, features)
            norm = max(float(known.square().sum().sqrt()), 1e-4)
            similar[a, b] = float((known / norm * patch(*b, features)).sum())
    for by_columns in (False, True):  # neighbours along rows, then along columns
        order = sorted(places, key=lambda p: p[::-1]) if by_columns else places
        numbered = dict(enumerate(order))
        similar = {
            (a, b): sum(
                similar[numbered[i + shift], numbered[j + shift]]
                for shift in (-1, 0, 1)
                if i + shift in numbered and j + shift in numbered
            )
            for i, a in numbered.items()
            for j, b in numbered.items()
        }
    result = torch.zeros(channels, 2 * side + 2, 2 * side + 2, dtype=features.dtype)
    padded = functional.pad(features, (1, 1, 1, 1))
    for b in places:
        known = {a: not patch(*a, masked).any() for a in places}
        powers = {a: math.exp(10 * similar[a, b] * known[a]) for a in places}
        for a in places:
            weight = known[a] * powers[a] / sum(powers.values())
            from_row, from_column, row, column = 2 * a[0], 2 * a[1], 2 * b[0], 2 * b[1]
            source = padded[:, from_row : from_row + 4, from_column : from_column + 4]
            result[:, row : row + 4, column : column + 4] += weight * source / 4
    return result[:, 1:-1, 1:-1]


@pytest.mark.parametrize("side", [4, 8])
def test_contextual_attention_against_a_plain_loop(side: int) -> None:
    draw = torch.Generator().manual_seed(side)
    features = 0.3 * torch.randn(3, 2, side, side, generator=draw).double()
    masked = torch.zeros(3, 1, side, side).double()
    masked[0, 0, side - 1 :, :2] = 1  # an odd row: no position on the smaller map
    masked[1, 0, 0, 0] = 1
    attended = attend(features, masked)
    for image, mask, expected in zip(features, masked, attended, strict=True):
        torch.testing.assert_close(slowly_attended(image, mask), expected)
    assert attended[0].any() and attended[2].any()
    assert not attend(features, torch.ones_like(masked)).any()


def test_losses_by_hand() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(1, 4, 2).double().eval()
    real, coarse, fine = (torch.rand(3, 1, 8, 8).double() * 2 - 1 for _ in range(3))
    masks = torch.zeros(3, 1, 8, 8).double()
    fine.requires_grad_(True)
    scores = {name: discriminator(x, masks) for name, x in (("real", real), ("fine", fine))}
    hinge = (1 - scores["real"]).clamp_min(0).mean() + (1 + scores["fine"]).clamp_min(0).mean()
    own = discriminator_loss(discriminator, real, fine, masks)
    torch.testing.assert_close(own, hinge / 2)
    torch.testing.assert_close(generator_loss(discriminator, fine, masks), -scores["fine"].mean())
    distances = [(stage - real).abs().mean() for stage in (coarse, fine)]
    squares = [(stage - real).square().mean() for stage in (coarse, fine)]
    loss = generative_loss(real, (coarse, fine), masks, discriminator, 2.0, 3.0, 0.5)
    expected = 2 * sum(distances) + 3 * sum(squares) + hinge / 2 - 0.5 * scores["fine"].mean()
    torch.testing.assert_close(loss, expected)
    # the gradient of the fine stage is without the discriminator's own loss, and reaches it
    (gradient,) = torch.autograd.grad(loss, fine, retain_graph=True)
    without = generative_loss(real, (coarse, fine), masks, None, 2.0, 3.0, 0.5)
    without = without - 0.5 * discriminator(fine, masks).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(without, fine)[0])
    loss.backward()
    gradients = [weight.grad for weight in discriminator.parameters()]
    others = torch.autograd.grad(
        discriminator_loss(discriminator, real, fine, masks), list(discriminator.parameters())
    )
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other)


# Transforms


def test_masks_have_their_share_in_blocks() -> None:
    masks = block_masks(3, INDICES, (32, 32), 4, 0.25, 1, "image")
    assert masks.shape == (12, 1, 1, 32, 32)
    assert (masks.mean(dim=(1, 2, 3, 4)) == 0.25).all()
    blocks = masks.view(12, 8, 4, 8, 4).transpose(2, 3).flatten(3)
    assert set(blocks.mean(dim=3).unique().tolist()) == {0.0, 1.0}
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 12


def test_several_masks_are_disjoint_and_cover_the_image() -> None:
    masks = block_masks(3, INDICES, (28, 28), 4, 0.25, 4, "image")
    assert (masks.sum(dim=1) == 1).all()
    counts = masks.sum(dim=(2, 3, 4)) / 16
    assert sorted(counts[0].tolist()) == [12, 12, 12, 13]


def test_a_mask_depends_on_seed_and_index_alone() -> None:
    masks = block_masks(3, INDICES, (16, 16), 4, 0.25, 1, "image")
    assert torch.equal(block_masks(3, INDICES[[2]], (16, 16), 4, 0.25, 1, "image")[0], masks[2])
    assert not torch.equal(block_masks(4, INDICES, (16, 16), 4, 0.25, 1, "image"), masks)


def test_a_shared_mask_is_that_of_the_draw() -> None:
    def drawn(indices: Tensor) -> Tensor:
        return block_masks(3, indices, (16, 16), 2, 0.25, 1, "shared")

    masks = drawn(INDICES)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    again = drawn(INDICES + FIRST_DRAW)
    assert all(torch.equal(mask, again[0]) for mask in again)
    assert not torch.equal(again, masks)


class Recorded(nn.Module):
    """In place of the generator: keeps its inputs; fills image k of the batch with k / 100."""

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.pixels, self.mask = pixels, mask
        values = torch.arange(len(pixels)).view(-1, 1, 1, 1) / 100
        return pixels, values.expand_as(pixels)


def test_rt3_joins_the_filled_pixels() -> None:
    method, recorded = made(masks=4), Recorded()
    method.generator = recorded  # type: ignore[assignment]
    purified = method.purify(IMAGES, 5, INDICES)
    passes, masks = recorded.pixels.view(4, 12, *SHAPE), recorded.mask.view(4, 12, *SHAPE)
    assert all(torch.equal(one, passes[0]) for one in passes)  # one noise
    for image in range(12):
        expected = torch.zeros(SHAPE)
        for number in range(4):
            filled = (number * 12 + image) / 100
            expected[masks[number, image] == 1] = (filled + 1) / 2
        torch.testing.assert_close(purified[image], expected)


def test_rt1_and_rt2_return_all_of_the_output() -> None:
    for noise in (0.0, 0.25):
        method, recorded = made(noise=noise), Recorded()
        method.generator = recorded  # type: ignore[assignment]
        purified = method.purify(IMAGES, 5, INDICES)
        expected = (torch.arange(12).view(-1, 1, 1, 1) / 100 + 1) / 2
        torch.testing.assert_close(purified, expected.expand_as(purified))
        seen = (recorded.pixels + 1) / 2
        inside = (IMAGES > 0.45) & (IMAGES < 0.55)
        if noise:
            spread = float((seen - IMAGES)[inside].std())
            assert spread == pytest.approx(0.23, rel=0.2)  # clipped beyond 2 standard deviations
            assert seen.min() == 0 and seen.max() == 1
        else:
            torch.testing.assert_close(seen, IMAGES)


def test_masked_pixels_do_not_reach_the_generator() -> None:
    generator = frozen(Generator(1, 8))
    mask = block_masks(0, INDICES, (16, 16), 4, 0.25, 1, "image")[:, 0]
    stages = generator(2 * IMAGES - 1, mask)
    others = generator((2 * IMAGES - 1) * (1 - mask) + 0.7 * mask, mask)
    assert all(torch.equal(one, other) for one, other in zip(stages, others, strict=True))
    assert not torch.equal(stages[1], generator(1 - 2 * IMAGES, mask)[1])


@pytest.mark.parametrize("masks", [1, 4])
def test_batch_mates_do_not_matter_and_seeds_do(masks: int) -> None:
    method = frozen(made(masks=masks))
    whole = method.purify(IMAGES, 2, INDICES)
    order = torch.tensor([4, 8, 0, 2, 7, 1, 3, 6, 5, 9, 11, 10])
    parts = [method.purify(IMAGES[rows], 2, INDICES[rows]) for rows in order.split(5)]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-6, rtol=0)
    assert not torch.equal(method.purify(IMAGES, 3, INDICES), whole)


def test_the_gradient_is_that_of_finite_differences() -> None:
    method = frozen(made(masks=4, noise=0.05)).double()
    image = IMAGES[:1].double().clamp(0.3, 0.7).requires_grad_(True)
    weights = torch.randn(SHAPE, generator=DRAW).double()

    def value(x: Tensor) -> Tensor:
        return (method.purify(x, 1, INDICES[:1]) * weights).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    direction = torch.randn(image.shape, generator=DRAW).double()
    step = 1e-6
    with torch.no_grad():
        slope = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)
    assert float(gradient.abs().max()) > 0


def test_all_draws_of_eot_are_one_batch(network: nn.Module) -> None:
    method = frozen(made(network))
    batches = []
    method.generator.register_forward_pre_hook(lambda part, given: batches.append(len(given[0])))
    attack = purifiers.attack("fgsm", eps=0.1)
    for gradient in ("exact", "bpda"):
        batches.clear()
        defence = Defence(network, [method], gradient=gradient, eot_samples=3)
        adversarial = attack(defence, IMAGES, LABELS)
        assert not torch.equal(adversarial, IMAGES)
        assert max(batches) == 36


def test_another_side_resizes_there_and_back() -> None:
    method, recorded = made(side=32, mask_block=8, noise=0.0), Recorded()
    method.generator = recorded  # type: ignore[assignment]
    purified = method.purify(IMAGES)
    assert recorded.pixels.shape == (12, 1, 32, 32) and purified.shape == IMAGES.shape
    expected = functional.interpolate(IMAGES, (32, 32), mode="bilinear")
    torch.testing.assert_close((recorded.pixels + 1) / 2, expected)
    torch.testing.assert_close(purified[:, 0, 3, 5], (torch.arange(12) / 100 + 1) / 2)


# Trainings


def fit(network: nn.Module, **parameters: Any) -> Atop:
    method = Atop(**{**SMALL, **SHORT, **parameters})
    purifiers.fit(method, network, IMAGES, LABELS, progress=False)
    return method


def test_without_atop_the_first_training_is_all(network: nn.Module) -> None:
    alone, without_classifier = (
        fit(network, fine_tune=False),
        Atop(**SMALL, **SHORT, fine_tune=False),
    )
    purifiers.fit(without_classifier, None, IMAGES, LABELS, progress=False)
    state = without_classifier.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())
    with pytest.raises(UserError, match="Atop is fitted on a classifier"):
        purifiers.fit(Atop(**SMALL), None, IMAGES, LABELS)
    tuned = fit(network)
    assert int(tuned.fine_tune_steps) == 4
    name = "generator.fine.decoder.last.weight"
    assert not torch.equal(tuned.state_dict()[name], state[name])


def test_the_classification_loss_begins_after_its_epochs(network: nn.Module) -> None:
    never, after_all = (
        fit(network, **given).state_dict()
        for given in ({"classification_weight": 0.0}, {"classification_after": 2.0})
    )
    assert all(torch.equal(value, after_all[name]) for name, value in never.items())
    half = fit(network, classification_after=1.0).state_dict()
    assert any(not torch.equal(value, half[name]) for name, value in never.items())


@pytest.mark.parametrize(
    ("attack", "target"), [("fgsm", "adversarial"), ("fgsm", "clean"), ("none", "clean")]
)
@pytest.mark.parametrize("masks", [1, 4])
def test_fine_tuning_loss_by_hand(network: nn.Module, attack: str, target: str, masks: int) -> None:
    method = made(
        network, eps=0.1, fine_tune_attack=attack, target=target, masks=masks, gan_weight=0.0
    )
    examples: list[Tensor] = []

    def watch(pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        examples.append(pixels)
        return original(pixels, mask)

    original = method.generator.forward
    method.generator.forward = watch  # type: ignore[method-assign]
    loss = method.tuning_loss(IMAGES, LABELS, INDICES, 4)
    leaf = IMAGES.clone().requires_grad_(True)
    entropy = functional.cross_entropy(network(leaf), LABELS)
    (gradient,) = torch.autograd.grad(entropy, leaf)
    eps = 0.1 if attack == "fgsm" else 0.0  # Eq. b, Eq. a
    adversarial = (IMAGES + eps * gradient.sign()).clamp(0, 1)
    (stages, drawn) = method._filled(adversarial, INDICES, 4)
    torch.testing.assert_close(examples[0], examples[1])
    real = 2 * (adversarial if target == "adversarial" else IMAGES) - 1
    distance = sum((stage - real.repeat(masks, 1, 1, 1)).abs().mean() for stage in stages)
    purified = method.purify(adversarial, 4, INDICES)
    expected = distance + 0.05 * functional.cross_entropy(network(purified), LABELS)
    torch.testing.assert_close(loss, expected)
    assert drawn.shape[0] == 12 * masks


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_kill_in_fine_tuning_changes_no_bit(
    network: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    pixels, labels = (IMAGES * 255).to(torch.uint8).numpy(), LABELS.numpy()

    def fitted(method: Atop, folder: str) -> Atop:
        at = fitting.Workplace(tmp_path / folder, "atop", "atop", "cpu", 8, 0.0, quiet=True)
        at.folder.mkdir(exist_ok=True)
        fitting.fit_method(method, [network], pixels, labels, 4, at)
        return method

    parameters = {"classification_after": 1.0}  # from the third step on
    whole = fitted(made(network, **parameters), "whole")
    first = made(network, **parameters)
    step = first.tuning_loss

    def killed(*given: Any) -> Tensor:
        if int(first.fine_tune_steps) == kill_at:
            raise Killed
        return step(*given)

    monkeypatch.setattr(first, "tuning_loss", killed)
    with pytest.raises(Killed):
        fitted(first, "killed")
    again = made(network, **parameters)
    steps = []
    rest = again.tuning_loss
    monkeypatch.setattr(again, "tuning_loss", lambda *given: steps.append(given) or rest(*given))
    fitted(again, "killed")
    assert len(steps) == 4 - kill_at
    assert all(torch.equal(v, whole.state_dict()[n]) for n, v in again.state_dict().items())


def test_copies_are_the_generator_during_the_second_training(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pixels, labels = (IMAGES * 255).to(torch.uint8).numpy(), LABELS.numpy()
    method = made(network, snapshots=2)
    before: list[Tensor] = []
    step = method.tuning_loss

    def seen(*given: Any) -> Tensor:
        before.append(weights_of(method.generator))
        return step(*given)

    monkeypatch.setattr(method, "tuning_loss", seen)
    at = fitting.Workplace(tmp_path, "atop", "atop", "cpu", 8, math.inf, quiet=True)
    fitting.fit_method(method, [network], pixels, labels, 4, at)
    assert len(before) == 4  # two epochs of two steps
    assert torch.equal(method.copies, torch.stack([before[0], before[2]]))
    for number, weights in enumerate([weights_of(method.generator), before[0], before[2]]):
        chosen = made(network, snapshots=2, snapshot=number)
        chosen.load_state_dict(method.state_dict())
        assert torch.equal(weights_of(chosen.generator), weights)
    with pytest.raises(UserError, match="snapshot is 3, but the second training keeps 2"):
        made(network, snapshots=2, snapshot=3)


@pytest.mark.parametrize("masks", [1, 4])
def test_a_fixed_mask_is_that_of_every_draw_and_image(masks: int) -> None:
    seen: list[Tensor] = []
    method = made(masks=masks, fixed_mask=True)
    method.generator.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    method.purify(IMAGES, 0, INDICES)
    method.purify(IMAGES[:3], 1, INDICES[:3] + FIRST_DRAW)
    first = seen[0].unflatten(0, (masks, 12))
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert torch.equal(first[:, :3], seen[1].unflatten(0, (masks, 3)))
    method.fit_loss(IMAGES, LABELS, INDICES, 0)
    assert not torch.equal(seen[2][0], seen[2][1])  # the training draws


# Refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"masks": 3}, r"3 masks of 0\.25 of the image do not cover it once"),
        ({"mask": "batch"}, "mask is 'batch'"),
        ({"target": "noisy"}, "target is 'noisy'"),
        ({"fine_tune_attack": "pgd"}, "fine_tune_attack is 'pgd'"),
        ({"mask_share": 0.0}, r"mask_share is 0\.0, but takes a number in \(0, 1\)"),
        ({"classification_weight": -0.1}, "classification_weight is -0.1"),
        ({"width": 6}, "width is 6"),
        ({"l1_weight": 0.0}, "nothing is reconstructed"),
        ({"mask_block": 3}, "16x16 images are not multiples of 3 .mask_block."),
        ({"mask_share": 0.05}, "a share of 0.05 of 16x16 images is less than a block"),
        (
            {"discriminator_depth": 5},
            "16x16 images are smaller than 32",
        ),
        ({"side": 4}, "needs a map of 2x2, which 4x4 images do not leave: set side to at least 8"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        made(**parameters)
    assert "\n" not in str(raised.value)


def test_fine_tuning_needs_a_classifier() -> None:
    with pytest.raises(UserError, match="bind a classifier before fine-tuning"):
        made().tuning_loss(IMAGES, LABELS, INDICES, 0)


def test_the_recipes_are_those_of_the_parameters() -> None:
    method = Atop()
    tuning = replace(method.recipe, epochs=30, batch_size=8)
    assert method.fine_tune_recipe == tuning
    assert method.recipe.betas == (0.5, 0.999) and method.recipe.optimizer == "adam"


@pytest.mark.parametrize("parameters", [{}, {"masks": 4}, {"fixed_mask": True}, {"side": 32}])
def test_the_transformed_image_is_what_the_generator_gets(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = made(noise=0.25, **parameters)
    inputs: list[Tensor] = []
    generator = method.generator.forward

    def seen(pixels: Tensor, mask: Tensor) -> Any:
        inputs.append(pixels * (1 - mask))
        return generator(pixels, mask)

    monkeypatch.setattr(method.generator, "forward", seen)
    rows = torch.arange(5, 5 + len(IMAGES))
    method.purify(IMAGES, 7, rows)
    expected = (inputs[0][: len(IMAGES)] + 1) / 2
    transformed = method.transformed(IMAGES, 7, rows)
    assert transformed.shape == IMAGES.shape
    if "side" not in parameters:
        assert torch.equal(transformed, expected)
        assert (transformed == 0.5).float().mean() > 0.2
    assert transformed.min() >= 0 and transformed.max() <= 1
