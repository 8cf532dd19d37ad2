"""DiffPure: its diffusion and steps by hand, its gradients, and its network's size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import purifiers
from purifiers.core.component import frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.fitting import Workplace, fit_method
from purifiers.core.registry import describe
from purifiers.methods import _vp_sde
from purifiers.methods._ddpmpp import Ddpmpp
from purifiers.methods.diff_pure import DiffPure, _Draws

SMALL = {
    "width": 4, "blocks": 1, "multipliers": (1, 2), "attention": 4, "dropout": 0.0,
    "iterations": 9, "batch_size": 5, "warm_up": 3, "averaging": 0.5, "learning_rate": 0.01,
}  # fmt: skip
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """Predicts ``slope`` times the image plus 100 times the time."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def shift(self, times):
        return times[:, None]

    def forward(self, images, shift):
        return self.slope * images + 100.0 * shift.view(-1, 1, 1, 1)


class Gaussian(nn.Module):
    """The exact noise expected in images whose pixels are N(mean, std^2) at time 0."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def shift(self, times):
        return times[:, None]

    def forward(self, images, shift):
        decay = _vp_sde.log_decay(shift.view(-1, 1, 1, 1)).exp()
        noise = (1.0 - decay.square()).sqrt()
        variance = (decay * self.std) ** 2 + noise.square()
        return noise * (images - decay * self.mean) / variance


class Curved(Gaussian):
    """The same, bent so that its derivative depends on the image."""

    def __init__(self) -> None:
        super().__init__(0.1, 0.4)

    def forward(self, images, shift):
        return super().forward(images, shift) * (1.0 + 0.5 * torch.sin(3.0 * images))


def with_network(network: nn.Module, **parameters) -> DiffPure:
    method = DiffPure(**{**SMALL, **parameters})
    method.network = network
    method.is_bound = True
    return frozen(method)


def random_one(**parameters) -> DiffPure:
    """Random weights, also where training begins with zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = DiffPure(**{**SMALL, **parameters})
        method.bind(None, (1, 8, 8))
        for parameter in method.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return frozen(method)


@pytest.mark.parametrize(("channels", "parameters"), [(3, 106_632_579), (1, 106_627_969)])
def test_parameters_of_score_sdes_network(channels, parameters):
    """Counted with its code and `cifar10_ddpmpp_deep_continuous` (score_sde_pytorch)."""
    with torch.device("meta"):
        network = Ddpmpp(channels, 32)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_diffusion_by_hand():
    """integral of beta to .1: .1 * .1 + 19.9 * .005 = .1095; m = exp(-.1095 / 2)."""
    assert _vp_sde.decay(0.1) == pytest.approx(math.exp(-0.05475))
    assert _vp_sde.deviation(0.1) == pytest.approx(math.sqrt(1.0 - math.exp(-0.1095)))
    rates = [0.0001 + number * 0.0199 / 999 for number in range(100)]
    expected = math.sqrt(math.prod(1.0 - rate for rate in rates))
    assert _vp_sde.discrete_decay(0.1) == pytest.approx(expected)


def test_the_steps_have_upstreams_times():
    grid = _vp_sde.times(0.1, 100, 1e-5)
    assert len(grid) == 101 and grid[-1] == 1e-5
    assert grid[:-1] == pytest.approx([0.1 - 0.001 * number for number in range(100)])
    assert _vp_sde.times(1e-5, 2, 1e-5) == [1e-5] * 3


RATE = 0.1 + 0.1 * 19.9
STD = math.sqrt(1.0 - math.exp(-0.1095))


@pytest.mark.parametrize(
    ("sampler", "keep", "denoise", "renoise"),
    [
        ("sde", 1.0 + RATE * 0.05, -RATE * 0.1 / STD, math.sqrt(RATE * 0.1)),
        ("ode", 1.0 + RATE * 0.05, -RATE * 0.05 / STD, 0.0),
        ("ddpm", math.exp(0.05475), -STD * math.exp(0.05475), 0.0),
    ],
)
def test_one_step_by_hand(sampler, keep, denoise, renoise):
    """A 2x2 image, the prediction .3 x + 10; the reverse of dx = -beta x / 2 dt + sqrt(beta) dw."""
    images = torch.tensor([[[[0.5, 0.6], [0.45, 0.52]]]])
    method = with_network(Linear(0.3), sampler=sampler, steps=1, stop_time=0.1)
    draws = _Draws(images, 7, [3])
    noisy = math.exp(-0.05475) * (2 * images - 1) + STD * draws(0)
    expected = keep * noisy + denoise * (0.3 * noisy + 10.0) + renoise * draws(1)
    solved = method._solve(method._noisy(images, draws), draws, method._reversal())
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-3)  # it ends at 1e-5, not 0
    torch.testing.assert_close(
        method.purify(images, 7, [3]), ((solved + 1.0) / 2.0).clamp(0.0, 1.0)
    )


def test_an_ancestral_step_has_the_posteriors_variance():
    """x_s given x_0 and x_t: precisions of N(m_s x_0, v_s) and x_t = r x_s + noise add up."""
    step = _vp_sde.ancestral(0.2, 0.1)
    squares = math.exp(-0.1095), math.exp(-0.418)  # m_s^2, m_t^2: integrals of beta
    ratio = squares[1] / squares[0]
    precision = ratio / (1.0 - ratio) + 1.0 / (1.0 - squares[0])
    assert step.renoise**2 == pytest.approx(1.0 / precision)
    clean, noise = 0.3, -0.7  # x_t without error: the mean is that of x_0 = clean
    noisy = math.sqrt(squares[1]) * clean + math.sqrt(1.0 - squares[1]) * noise
    parts = math.sqrt(ratio) / (1 - ratio) * noisy + math.sqrt(squares[0]) * clean / (
        1.0 - squares[0]
    )
    assert step.keep * noisy + step.denoise * noise == pytest.approx(parts / precision)


@pytest.mark.parametrize("sampler", ["sde", "ddpm"])
def test_an_exact_score_samples_the_posterior(sampler):
    """Pixels N(-.2, .3^2): given a noisy pixel y, mean and variance are those of the conjugate."""
    mean, std, pixel = -0.2, 0.3, 0.55
    images = torch.full((64, 1, 16, 16), pixel)
    method = with_network(Gaussian(mean, std), sampler=sampler, steps=200, stop_time=0.2)
    draws = _Draws(images, 1, None)
    noisy = method._noisy(images, draws)
    solved = method._solve(noisy, draws, method._reversal())
    decay, noise = _vp_sde.decay(0.2), _vp_sde.deviation(0.2)
    gain = decay * std**2 / ((decay * std) ** 2 + noise**2)
    expected = mean + gain * (noisy - decay * mean)
    left = std**2 * (1.0 - gain * decay)
    assert float((solved - expected).mean()) == pytest.approx(0.0, abs=0.01)
    assert float((solved - expected).std()) == pytest.approx(math.sqrt(left), rel=0.03)


def test_the_flow_with_an_exact_score_keeps_the_density():
    """It maps quantile to quantile: z standard deviations from the mean remain z."""
    mean, std = -0.2, 0.3
    method = with_network(Gaussian(mean, std), sampler="ode", steps=400, stop_time=0.2)
    draws = _Draws(IMAGES, 1, None)
    noisy = method._noisy(IMAGES, draws)
    decay, noise = _vp_sde.decay(0.2), _vp_sde.deviation(0.2)
    z = (noisy - decay * mean) / math.hypot(decay * std, noise)
    solved = method._solve(noisy, draws, method._reversal())
    torch.testing.assert_close(solved, mean + std * z, atol=0.01, rtol=0.01)


def test_the_score_of_a_gaussian():
    """By the chain rule: m N'(m y; m mu, ...) and two units of y per unit of x."""
    method = with_network(Gaussian(0.1, 0.2), stop_time=0.3)
    leaf = IMAGES.clone().requires_grad_()
    decay, noise = _vp_sde.decay(0.3), _vp_sde.deviation(0.3)
    density = torch.distributions.Normal(decay * 0.1, math.hypot(decay * 0.2, noise))
    (expected,) = torch.autograd.grad(density.log_prob(decay * (2 * leaf - 1)).sum(), leaf)
    torch.testing.assert_close(method.score(IMAGES), expected)


def test_surrogate_is_the_expected_image():
    """One ancestral step: (x - std e) / m, without further noise."""
    method = with_network(Linear(0.3), stop_time=0.1)
    draws = _Draws(IMAGES, 5, None)
    noisy = method._noisy(IMAGES, draws)
    expected = (noisy - STD * (0.3 * noisy + 10.0)) * math.exp(0.05475)
    torch.testing.assert_close(
        method.step(IMAGES, 5), ((expected + 1) / 2).clamp(0, 1), atol=1e-4, rtol=1e-4
    )
    more = with_network(Linear(0.3), stop_time=0.1, sampler="ddpm", steps=4, surrogate_steps=4)
    assert torch.equal(more.step(IMAGES, 5), more.purify(IMAGES, 5))


@pytest.mark.parametrize("sampler", ["sde", "ode", "ddpm"])
def test_equal_images_in_any_batch(sampler):
    method = random_one(sampler=sampler, steps=3, start="discrete")
    whole = method.purify(IMAGES, 2, [4, 9, 6])
    alone = [method.purify(IMAGES[i : i + 1], 2, [index]) for i, index in enumerate([4, 9, 6])]
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-5, rtol=0)
    assert not torch.equal(method.purify(IMAGES, 3, [4, 9, 6]), whole)
    draws = _Draws(IMAGES, 2, [4, 9, 6])
    assert not torch.equal(draws(0), draws(1))


@pytest.mark.parametrize("gradient", ["exact", "one_step", "bpda"])
def test_all_draws_of_eot_are_one_batch(gradient):
    method, batches = random_one(steps=2), []
    method.network.register_forward_pre_hook(lambda part, given: batches.append(len(given[0])))
    network = frozen(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    defence = Defence(network, [method], gradient=gradient, eot_samples=4)
    adversarial = purifiers.attack("fgsm", eps=0.1)(defence, IMAGES, torch.arange(len(IMAGES)))
    assert not torch.equal(adversarial, IMAGES)
    assert max(batches) == 4 * len(IMAGES)


def gradient(method: DiffPure, how: str = "purify") -> torch.Tensor:
    leaf = IMAGES.clone().requires_grad_()
    weights = torch.linspace(-1, 1, IMAGES.numel()).view_as(IMAGES)
    purified = getattr(method, how)(leaf, 4)
    (result,) = torch.autograd.grad((weights * purified).sum(), leaf)
    assert torch.isfinite(result).all() and bool(result.any())
    return result


@pytest.mark.parametrize("sampler", ["sde", "ode", "ddpm"])
def test_gradients_are_those_without_recomputing(sampler, monkeypatch):
    method = random_one(sampler=sampler, steps=4)
    exact = gradient(method)
    assert torch.equal(exact, gradient(method))
    monkeypatch.setattr(
        "purifiers.methods.diff_pure.checkpoint", lambda step, *inputs, **options: step(*inputs)
    )
    torch.testing.assert_close(exact, gradient(method), rtol=1e-4, atol=1e-6)


def saved_numbers(method: DiffPure) -> int:
    """Numbers kept for the backward pass, without those of tensors that exist anyway."""
    kept = [0]
    weights = {p.data_ptr() for p in method.parameters()}

    def pack(tensor):
        kept[0] += 0 if tensor.data_ptr() in weights else tensor.numel()
        return tensor

    leaf = IMAGES.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method.purify(leaf, 4)
    return kept[0]


def test_steps_do_not_add_activations():
    """Exact: at most the image of each step; adjoint: the same for any number of steps."""
    few, many = (saved_numbers(random_one(steps=steps)) for steps in (2, 12))
    assert many - few <= 10 * IMAGES.numel()
    few, many = (saved_numbers(random_one(steps=s, backward="adjoint")) for s in (2, 12))
    assert many == few


@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_the_adjoint_nears_the_exact_gradient(sampler):
    errors = []
    for steps in (20, 80, 320):
        parameters = {"sampler": sampler, "steps": steps, "stop_time": 0.2}
        exact = gradient(with_network(Curved(), **parameters))
        adjoint = gradient(with_network(Curved(), **parameters, backward="adjoint"))
        errors.append(float((adjoint - exact).norm() / exact.norm()))
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1]
    assert errors[2] < 0.03


def test_the_adjoint_purifies_the_same():
    method = random_one(steps=3, backward="adjoint")
    leaf = IMAGES.clone().requires_grad_()
    assert torch.equal(method.purify(leaf, 4).detach(), random_one(steps=3).purify(IMAGES, 4))


def test_threat_models_have_their_gradients():
    classifier = frozen(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    method = random_one(steps=3)
    found = {}
    for name in ("exact", "bpda", "one_step"):
        leaf = IMAGES.clone().requires_grad_()
        logits = Defence(classifier, [method], gradient=name, seed=1)(leaf, torch.arange(3))
        (found[name],) = torch.autograd.grad(logits[:, 0].sum(), leaf)
    weights = classifier[1].weight[0].view(1, 1, 8, 8).expand(3, -1, -1, -1)
    torch.testing.assert_close(found["bpda"], weights)
    assert not torch.allclose(found["exact"], found["one_step"], rtol=0.1)


def test_sides_that_do_not_divide_are_padded():
    """7x6 in two levels is computed as 8x6, with a row of zeros below."""
    torch.manual_seed(0)
    network = frozen(Ddpmpp(1, 7, 4, 1, (1, 2), 4, 0.0))
    nn.init.normal_(network.output.weight)
    images, shift = torch.randn(2, 1, 7, 6), network.shift(torch.tensor([0.3]))
    below = torch.cat([images, torch.zeros(2, 1, 1, 6)], dim=2)
    torch.testing.assert_close(network(images, shift), network(below, shift)[:, :, :7])
    assert [s.attention is not None for s in network.down] == [False, False, True]


def test_the_loss_by_hand():
    """The prediction of noise as 100 t: its error has mean 1 + (100 t)^2, t uniform."""
    method = with_network(Linear(0.0))
    images = torch.rand(4000, 1, 2, 2)
    loss = method.fit_loss(images, torch.zeros(4000), torch.arange(4000), 0)
    assert float(loss) == pytest.approx(1.0 + 100.0**2 / 3, rel=0.05)
    exact = with_network(Gaussian(0.5, 1e-6))
    flat = torch.full((64, 1, 2, 2), 0.75)
    assert float(exact.fit_loss(flat, torch.zeros(64), torch.arange(64), 0)) < 1e-4


def fitted(folder, kill_at: int | None = None) -> DiffPure:
    torch.manual_seed(1)
    method = DiffPure(**SMALL)
    method.bind(None, (1, 8, 8))
    loss, calls = method.fit_loss, iter(range(99))

    def dies(*batch):
        if next(calls) == kill_at:
            raise InterruptedError
        return loss(*batch)

    method.fit_loss = dies
    folder.mkdir(exist_ok=True)
    pixels, labels = (IMAGES.repeat(4, 1, 1, 1) * 255).byte().numpy(), torch.zeros(12).numpy()
    where = Workplace(folder, "run", "fit", "cpu", 5, 0.0, quiet=True)
    fit_method(method, [], pixels, labels, 3, where)
    return method


def test_a_killed_fit_ends_with_the_same_average(tmp_path):
    whole = fitted(tmp_path / "whole").state_dict()
    with pytest.raises(InterruptedError):
        fitted(tmp_path / "killed", kill_at=5)
    again = fitted(tmp_path / "killed").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"stop_time": 0.0}, r"stop_time is 0.0, but takes a number in \(0, 1\)"),
        ({"stop_time": 1}, "stop_time is 1"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "heun"}, "sampler is 'heun': choose one of sde, ode, ddpm"),
        ({"start": "none"}, "start is 'none': choose one of continuous, discrete"),
    ],
)
def test_wrong_parameters_are_refused_when_planned(parameters, told):
    with pytest.raises(UserError, match=told):
        DiffPure(**parameters)
    ((name, value),) = parameters.items()
    with pytest.raises(UserError, match=told):
        describe("method", "diff_pure").checked(name, value, "paper.yaml")


def test_what_planning_cannot_see_is_refused():
    with pytest.raises(UserError, match="width is 6"):
        purifiers.method("diff_pure", width=6)
    with pytest.raises(UserError, match="ddpm has no adjoint"):
        purifiers.method("diff_pure", sampler="ddpm", backward="adjoint")
