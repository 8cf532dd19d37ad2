"""ADP: the network's size, and its formulas worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.noise import keys_on, normal_on
from purifiers.core.target import input_gradient
from purifiers.methods import _adp_targets
from purifiers.methods._ncsn import InstanceNormPlus, ScoreNetwork
from purifiers.methods.adp import Adp


class Towards(nn.Module):
    """A score network by hand: the direction to a grey level, bent by a quadratic term."""

    def __init__(self, grey: float = 0.5, bend: float = 0.0) -> None:
        super().__init__()
        self.grey, self.bend = grey, bend

    def forward(self, images):
        away = self.grey - images
        return away + self.bend * away.square()


def adp(network: nn.Module, **parameters) -> Adp:
    method = Adp(width=2, score_levels=4, **parameters)
    method.bind(None, (1, 2, 2))
    method.network = network
    return method.eval()


@pytest.mark.parametrize(
    ("channels", "width", "parameters"),
    [
        (3, 128, 29_694_083),
        (1, 128, 29_689_473),
        (3, 64, 7_429_187),
        (1, 64, 7_426_881),
        (3, 32, 1_860_131),
        (1, 32, 1_858_977),
    ],
)
def test_parameters_of_ncsnv2(channels, width, parameters):
    with torch.device("meta"):
        network = ScoreNetwork(channels, width)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_instance_norm_plus_by_hand():
    """Two channels of two pixels: 0, 2 and 4, 8. Means 1 and 6, their mean 3.5, variance 12.5."""
    norm = InstanceNormPlus(2)
    with torch.no_grad():
        norm.alpha.copy_(torch.tensor([2.0, 1.0]))
        norm.gamma.copy_(torch.tensor([1.0, 3.0]))
        norm.beta.copy_(torch.tensor([0.5, 0.0]))
    images = torch.tensor([[[[0.0, 2.0]], [[4.0, 8.0]]]])
    z = 2.5 / 12.5**0.5
    expected = torch.tensor(
        [[[[-1 - 2 * z + 0.5, 1 - 2 * z + 0.5]], [[3 * (-1 + z), 3 * (1 + z)]]]]
    )
    torch.testing.assert_close(norm(images), expected, atol=2e-5, rtol=0)


def test_an_adaptive_step_by_hand():
    """s = .5 - x: rho = 1 - delta, so the step is lambda delta / delta = lambda."""
    method = adp(Towards(), sigma=0.0, iterations=1, step_scale=0.05)
    images = torch.tensor([[[[0.1, 0.3], [0.6, 0.9]]]])
    torch.testing.assert_close(
        method.purify(images), images + 0.05 * (0.5 - images), atol=1e-5, rtol=0
    )


def test_steps_are_bounded_and_a_short_one_is_the_last():
    images = torch.tensor([[[[0.1, 0.3], [0.6, 0.9]]]])
    long = adp(Towards(), sigma=0.0, iterations=1, step_scale=5.0)
    torch.testing.assert_close(long.purify(images), images + 0.1 * (0.5 - images))
    short = adp(Towards(), sigma=0.0, iterations=3, step_scale=0.0009)
    assert torch.equal(short.purify(images), images)


def test_a_growing_score_stops_an_image():
    """s = x - .5: rho = 1 + delta, a negative quotient."""
    method = adp(Towards(), sigma=0.0, iterations=3)
    method.network.forward = lambda x: x - 0.5
    images = torch.tensor([[[[0.1, 0.3], [0.6, 0.9]]]])
    assert torch.equal(method.purify(images), images)


def test_stopping_is_sticky_and_for_each_image():
    """The second image stops in its first step and never moves again, though it would later."""
    method = adp(Towards(), sigma=0.0, iterations=2)
    lengths = iter([torch.tensor([0.05, 0.0005]), torch.tensor([0.05, 0.05])])
    method._adaptive_length = lambda images, score: next(lengths)
    images = torch.tensor([[[[0.1, 0.3], [0.6, 0.9]]]]).repeat(2, 1, 1, 1)
    purified = method.purify(images)
    torch.testing.assert_close(purified[0], 0.5 - 0.95**2 * (0.5 - images[0]))
    assert torch.equal(purified[1], images[1])


def test_geometric_steps():
    method = adp(
        Towards(), sigma=0.0, iterations=3, step_rule="geometric", step_first=0.08, step_last=0.0008
    )
    images = torch.full((1, 1, 2, 2), 0.1)
    kept = (1 - 0.08) * (1 - 0.008) * (1 - 0.0008)
    torch.testing.assert_close(method.purify(images), 0.5 - kept * (0.5 - images))


def test_noise_depends_on_seed_and_index_alone():
    method = adp(Towards(), sigma=0.25, iterations=1, step_scale=0.0001)  # no step is taken
    images = torch.full((2, 1, 2, 2), 0.5)
    expected = (
        images + 0.25 * normal_on(keys_on(3, torch.tensor([7, 9]), "adp"), (1, 2, 2))
    ).clamp(0, 1)
    assert torch.equal(method.purify(images, 3, [7, 9]), expected)
    assert torch.equal(method.purify(images[1:], 3, [9]), expected[1:])
    assert not torch.equal(method.purify(images, 4, [7, 9]), expected)


def test_detection_gives_less_noise():
    """Norms of the score: .2 and .8 for grey levels .4 and .1 of four pixels."""
    method = adp(
        Towards(),
        sigma=0.1,
        iterations=1,
        step_scale=1e-6,
        detect=True,
        detection_norm=0.5,
        low_noise=0.2,
    )
    images = torch.tensor([0.4, 0.1]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    noise = normal_on(keys_on(0, torch.arange(2), "adp"), (1, 2, 2))
    expected = images + torch.tensor([0.02, 0.1]).view(2, 1, 1, 1) * noise
    torch.testing.assert_close(method.purify(images), expected.clamp(0, 1))


def test_the_training_loss_by_hand():
    """One level: 1/2 |net(x + sigma z) + z|^2 over the pixels, averaged over the images."""
    method = adp(Towards(), score_sigma_max=0.2, score_sigma_min=0.2)
    images = torch.rand(3, 1, 2, 2)
    z = normal_on(keys_on(5, torch.tensor([1, 2, 3]), "adp"), (1, 2, 2))
    residual = 0.5 - (images + 0.2 * z) + z
    expected = 0.5 * residual.square().sum() / 3
    loss = method.fit_loss(images, torch.zeros(3), torch.tensor([1, 2, 3]), 5)
    torch.testing.assert_close(loss, expected)


def test_levels_are_geometric():
    method = Adp(score_sigma_max=50.0, score_sigma_min=0.008454, score_levels=232)
    ratios = method.levels[:-1] / method.levels[1:]
    assert len(method.levels) == 232
    torch.testing.assert_close(ratios, torch.full_like(ratios, (50 / 0.008454) ** (1 / 231)))


def test_gradients_through_checkpoints_are_those_of_the_plain_loop():
    method = adp(Towards(bend=0.7), sigma=0.1, iterations=4)
    images = (0.3 + 0.4 * torch.rand(2, 1, 2, 2)).requires_grad_(True)
    (checkpointed,) = torch.autograd.grad(method.purify(images, 1).square().sum(), images)
    current, active = method._noisy(images, 1, torch.arange(2)), torch.ones(2, dtype=torch.bool)
    for number in range(4):
        current, active = method._step(current, active, number)
    (plain,) = torch.autograd.grad(current.square().sum(), images)
    torch.testing.assert_close(checkpointed, plain)
    assert plain.abs().min() > 0


def stored_numbers(iterations: int, draws: int, images: torch.Tensor) -> int:
    """Numbers kept for the backward pass of an attack's exact gradient: checkpoints' arguments, and
    tensors saved outside of them."""
    method = Adp(width=4, blocks=1, score_levels=4, sigma=0.1, iterations=iterations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.bind(None, tuple(images.shape[1:]))
    defence = Defence(nn.Flatten(), [frozen(method)], "exact", eot_samples=draws)
    kept = [0]

    def pack(tensor):
        kept[0] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        input_gradient(
            defence, images, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)),
            lambda logits, labels: logits.sum(dim=1),
        )  # fmt: skip
    return kept[0]


def test_steps_do_not_add_activations():
    """The limit of the class's docstring: an image and a flag per step, draw and attacked image."""
    images = torch.rand(2, 1, 8, 8)
    few, many = (stored_numbers(steps, 1, images) for steps in (2, 12))
    assert many - few <= 10 * (images.numel() + len(images))


def test_eot_15_through_10_steps_is_within_the_limit():
    images = torch.rand(2, 1, 8, 8)
    stored = stored_numbers(10, 15, images)
    assert stored <= 15 * (10 + 3) * (images.numel() + len(images))


def test_dct_drops_the_smallest_coefficients():
    """A constant of weight 100 and a cosine of weight 4: the cosine is below 5 % of the sum."""
    size = 4
    wave = torch.cos(torch.pi * (torch.arange(size) + 0.5) / size).repeat(size, 1)
    faint = 0.5 + 0.01 * wave
    strong = 0.5 + 0.2 * wave
    images = torch.stack([faint, strong]).unsqueeze(1)
    kept = _adp_targets.without_small_frequencies(images)
    torch.testing.assert_close(kept[0], torch.full((1, size, size), 0.5))
    torch.testing.assert_close(kept[1], strong.unsqueeze(0))


def test_augmix_targets_the_middle():
    images = (torch.rand(3, 3, 8, 8) * 255).round() / 255
    centre, target = _adp_targets.centre_and_target("augmix", images, 4, torch.arange(3))
    assert not torch.equal(centre, images)
    torch.testing.assert_close(target, (centre + images) / 2)
    again, _ = _adp_targets.centre_and_target("augmix", images, 4, torch.arange(3))
    assert torch.equal(again, centre)
