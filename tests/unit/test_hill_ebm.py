"""Hill et al.'s energy: its size, its dynamics by hand, its gradient, and a fit that is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.component import frozen
from purifiers.core.errors import UserError
from purifiers.core.fitting import Workplace, fit_method
from purifiers.core.noise import generator, keys_on, normal_on
from purifiers.methods.hill_ebm import Energy, HillEbm

GREY = (1, 8, 8)
SMALL: dict[str, Any] = {
    **{"width": 2, "steps": 3, "langevin_steps": 2, "chains": 6, "batch_size": 4},
    **{"adam_steps": 4, "sgd_steps": 3, "learning_rate": 1e-3},
}


def made(shape: tuple[int, ...] = GREY, **changes: Any) -> HillEbm:
    torch.manual_seed(3)
    method = HillEbm(**(SMALL | changes))
    method.bind(None, shape)
    return method


def some_images(count: int, shape: tuple[int, ...] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


class Bowl(nn.Module):
    """U(x) = .05 |x|^2, whose gradient is .1 x."""

    def forward(self, pixels: Tensor) -> Tensor:
        return 0.05 * pixels.square().flatten(1).sum(dim=1)

    def slope(self, pixels: Tensor) -> Tensor:
        return 0.1 * pixels


def size(shape: tuple[int, ...], width: int = 32) -> int:
    return sum(parameter.numel() for parameter in Energy(shape, width).parameters())


def test_size_of_upstreams_network():
    first, last = 3 * 9 * 32 + 32, 256 * 16 + 1
    middle = sum(16 * n * 2 * n + 2 * n for n in (32, 64, 128))
    assert first + middle + last == 693_569
    assert size((3, 32, 32)) == 693_569
    assert HillEbm().width == 32


@pytest.mark.parametrize(("side", "left"), [(8, 1), (16, 2), (28, 3), (32, 4), (64, 8)])
def test_the_last_convolution_covers_what_is_left(side, left):
    energy = Energy((1, side, side), 2)
    assert energy.layers[-1].kernel_size == (left, left)
    assert energy(torch.zeros(5, 1, side, side)).shape == (5,)


def test_the_slope_is_the_energys_gradient():
    energy = Energy(GREY, 4).double()
    pixels, step = some_images(2).double(), 1e-6
    for place in ((0, 0, 0), (0, 3, 7)):
        moved = pixels.clone()
        moved[(slice(None), *place)] += step
        rise = (energy(moved) - energy(pixels)) / step
        torch.testing.assert_close(energy.slope(pixels)[(slice(None), *place)], rise)


def test_langevin_steps_by_hand():
    method = made(eps=0.02, steps=2)
    method.energy = Bowl()
    images, rows = some_images(3), torch.tensor([5, 0, 9])
    noise = normal_on(keys_on(7, rows, "hill_ebm"), (2, *GREY))
    expected = 2 * images - 1
    for number in range(2):
        expected = 0.9 * expected + 0.02 * noise[:, number]
    purified = method.purify(images, 7, rows)
    torch.testing.assert_close(purified, (expected + 1) / 2)
    once = (0.9 * (2 * images - 1) + 0.02 * noise[:, 0] + 1) / 2
    torch.testing.assert_close(method.step(images, 7, rows), once)


def test_results_are_clipped():
    method = made(eps=2.0, steps=1)
    method.energy = Bowl()
    purified = method.purify(some_images(4), 1)
    assert purified.min() == 0 and purified.max() == 1


def test_the_gradient_is_that_of_the_unrolled_chain():
    method = frozen(made(eps=0.05))
    for parameter in method.energy.parameters():
        parameter.mul_(3.0)  # slopes that move the images
    images, rows = some_images(3), torch.arange(3)
    weights = torch.linspace(-1, 1, images.numel()).view_as(images)
    gradients, results = [], []
    for unrolled in (False, True):
        leaf = images.clone().requires_grad_(True)
        purified = method.purify(leaf, 2, rows)
        if unrolled:
            pixels, noise = 2 * leaf - 1, normal_on(keys_on(2, rows, "hill_ebm"), (3, *GREY))
            for number in range(3):
                energies = method.energy(pixels).sum()
                (slope,) = torch.autograd.grad(energies, pixels, create_graph=True)
                pixels = pixels - slope + 0.05 * noise[:, number]
            purified = ((pixels + 1) / 2).clamp(0, 1)
        results.append(purified.detach())
        gradients.append(torch.autograd.grad((weights * purified).sum(), leaf)[0])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)
    inside = (results[0] > 0) & (results[0] < 1)
    assert inside.any() and not inside.all() and (results[0] - images).abs().max() > 0.05
    assert torch.equal(gradients[0], torch.where(inside, weights, 0.0))


def test_the_score_is_that_of_the_langevin_density():
    method = made(eps=0.1)
    method.energy = Bowl()
    images = some_images(2)
    # log p = -U / (eps^2 / 2), U(2 x - 1) has the gradient 2 * .1 (2 x - 1)
    torch.testing.assert_close(method.score(images), -0.2 * (2 * images - 1) / 0.005)


def test_loss_and_bank_by_hand():
    method = made(eps=0.1, langevin_steps=1, data_noise=0.3)
    method.energy = Bowl()
    method.fit_on([], 50)
    assert method.bank is not None
    before = method.bank.clone()
    assert before.shape == (6, *GREY) and before.min() < -0.9 and before.max() > 0.9
    images, indices = some_images(4), torch.arange(10, 14)
    loss = method.fit_loss(images, torch.zeros(4), indices, 5)
    rows = torch.randperm(6, generator=generator(5, "hill_ebm chains"))[:4]
    chains = 0.9 * before[rows] + 0.1 * normal_on(keys_on(5, rows, "hill_ebm"), GREY)
    data = 2 * images - 1 + 0.3 * normal_on(keys_on(5, indices, "hill_ebm data"), GREY)
    energy = Bowl()
    torch.testing.assert_close(loss, (energy(data).mean() - energy(chains).mean()) / 0.005)
    torch.testing.assert_close(method.bank[rows], chains)
    others = [row for row in range(6) if row not in rows.tolist()]
    assert torch.equal(method.bank[others], before[others])


def test_one_chain_per_training_image_by_default():
    method = made(chains=None)
    method.fit_on([], 9)
    assert method.bank is not None and len(method.bank) == 9
    method.end_fit()
    with pytest.raises(UserError, match="no bank of chains; call fit_on"):
        method.fit_loss(some_images(2), torch.zeros(2), torch.arange(2), 0)


def test_the_rate_of_sgd_belongs_to_the_energies_themselves():
    second = HillEbm().second_recipe
    assert second is not None and second.optimizer == "sgd" and second.steps == 125_000
    assert second.learning_rate == pytest.approx(5e-5 * 0.01**2 / 2)
    assert made(sgd_steps=0).next_phase(np.zeros((2, *GREY)), np.zeros(2)) is None


def fitted(folder: Path, killed_at: int | None = None) -> dict[str, Tensor]:
    """Weights after a fit of seven steps; with ``killed_at`` it ends before that step."""
    method, steps = made(), 0
    loss = method.fit_loss

    def counted(*batch: Any) -> Tensor:
        nonlocal steps
        if steps == killed_at:
            raise KeyboardInterrupt
        steps += 1
        return loss(*batch)

    method.fit_loss = counted  # type: ignore[method-assign]
    pixels = (255 * some_images(10)).byte().numpy()
    folder.mkdir(exist_ok=True)
    at = Workplace(folder, "run", "fit", "cpu", 4, 0.0, quiet=True)
    summary = fit_method(method, [], pixels, np.zeros(10, dtype=np.int64), 0, at)
    assert summary["steps"] == 4 and summary["sgd"]["steps"] == 3
    return method.state_dict()


def test_a_killed_fit_ends_with_the_same_bits(tmp_path):
    whole = fitted(tmp_path / "whole")
    assert not any("bank" in name for name in whole)
    untrained = made().state_dict()
    moved = [name for name in whole if not torch.equal(whole[name], untrained[name])]
    assert moved == [name for name in whole if name != "energy.layers.8.bias"]  # cancels
    for step in (2, 6):  # in each of the two trainings
        folder = tmp_path / f"killed {step}"
        with pytest.raises(KeyboardInterrupt):
            fitted(folder, killed_at=step)
        again = fitted(folder)
        assert all(torch.equal(again[name], whole[name]) for name in whole)
    made().load_state_dict(whole)


def test_wrong_values_are_refused_in_one_line():
    described = registry.describe("method", "hill_ebm")
    for name, value in {"eps": -0.01, "data_noise": -1, "steps": 0, "chains": 0}.items():
        with pytest.raises(UserError, match=rf"^m: {name} is {value}, but takes a "):
            described.checked(name, value, "m")
    with pytest.raises(UserError, match=r"no network for 4x4 images.*above 7x7"):
        made((1, 4, 4))
