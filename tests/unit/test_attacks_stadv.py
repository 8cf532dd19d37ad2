"""StAdv: the warp by hand, the attack against autograd through everything, and its limits."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks.stadv import Stadv, roughness, warp
from purifiers.core.errors import UserError
from purifiers.core.target import as_target


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_no_flow_is_the_identity():
    images = random_images(3, 2, 7, 10)
    torch.testing.assert_close(warp(images, torch.zeros(3, 7, 10, 2)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axis", "right", "down"), [(0, 1, 0), (1, 0, 1)])
def test_a_flow_of_one_pixel_shifts_the_image(axis, right, down):
    """A pixel is 2 / side wide in grid coordinates."""
    images, flow = random_images(2, 1, 6, 8), torch.zeros(2, 6, 8, 2)
    flow[..., axis] = 2 / (8, 6)[axis]
    moved = warp(images, flow)
    inside = moved[:, :, : 6 - down, : 8 - right]
    torch.testing.assert_close(inside, images[:, :, down:, right:], atol=1e-5, rtol=0)


def test_half_a_pixel_is_the_mean_of_two():
    images, flow = random_images(1, 1, 4, 4), torch.zeros(1, 4, 4, 2)
    flow[0, 2, 1, 0] = 1 / 4
    moved = warp(images, flow)
    expected = images.clone()
    expected[0, 0, 2, 1] = (images[0, 0, 2, 1] + images[0, 0, 2, 2]) / 2
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_roughness_is_the_sum_over_four_neighbours():
    flow = random_images(2, 3, 5, 2)
    expected = torch.zeros(2)
    for n in range(2):
        for i in range(3):
            for j in range(5):
                for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if 0 <= a < 3 and 0 <= b < 5:
                        expected[n] += (flow[n, i, j] - flow[n, a, b]).norm()
    torch.testing.assert_close(roughness(flow), expected)


def test_the_flow_is_bounded_and_stays_in_the_image():
    flow = 4 * random_images(2, 6, 8, 2) - 2
    bounded = Stadv(bound=0.4)._bounded(flow)
    assert bounded.abs().max() <= 0.4
    places = F.affine_grid(torch.eye(2, 3).unsqueeze(0), [1, 1, 6, 8], align_corners=False)
    assert (places + bounded).abs().max() <= 1 + 1e-6
    free = (flow.abs() < 0.4) & ((places + flow).abs() < 1)
    assert free.any() and torch.equal(bounded[free], flow[free])
    assert torch.equal(bounded.abs() == 0.4, (flow.abs() >= 0.4) & ((places + bounded).abs() < 1))


def test_the_bound_holds_through_the_whole_attack():
    """On a ramp the bound is seen in the pixels: 0.05 is 0.4 of a pixel of 16."""
    ramp = torch.linspace(0.1, 0.9, 16).expand(1, 1, 16, 16).contiguous()

    def model(x):
        score = (x * ramp.flip(3)).sum(dim=(1, 2, 3)) + x[:, 0, :, 8].sum(dim=1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    attack = Stadv(bound=0.05, steps=30, smoothness=0.0)
    adversarial = attack(model, ramp, torch.zeros(1, dtype=torch.int64))
    moved = (adversarial - ramp)[0, 0, 1:-1, 1:-1] / (0.8 / 15)  # black comes in at the edge
    assert moved.abs().max() <= 0.4 + 1e-4
    assert moved.min() < -0.39


def textbook(model, images, labels, bound, steps, learning_rate, smoothness):
    """StAdv written plainly: autograd through warp and model, torch's Adam, every iterate."""
    n = len(images)
    home = F.affine_grid(
        torch.eye(2, 3, dtype=torch.float64).expand(n, 2, 3), images.shape, align_corners=False
    )
    grid = home.clone().requires_grad_()
    adam = torch.optim.Adam([grid], lr=learning_rate)
    best, score = images.clone(), [float("inf")] * n
    for _ in range(steps + 1):
        with torch.no_grad():
            grid.clamp_(-1, 1)
            grid.copy_(torch.clamp(grid, home - bound, home + bound))
        moved = F.grid_sample(images, grid, align_corners=False)
        logits = model(moved)
        true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        other = logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(dim=1)
        flow = (grid - home).permute(0, 3, 1, 2)
        padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
        neighbours = (
            padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1],
            padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:],
        )  # fmt: skip
        uneven = sum(
            ((flow - q).square().sum(dim=1) + 1e-10).sqrt().sum(dim=(1, 2)) for q in neighbours
        )
        objective = true - other + smoothness * uneven
        for i in range(n):
            # a success counts first, then the objective
            value = objective[i].item() - (1e6 if true[i] < other[i] else 0)
            if value < score[i]:
                score[i], best[i] = value, moved[i].detach()
        adam.zero_grad()
        objective.sum().backward()
        adam.step()
    return best


def test_equals_the_textbook(victim):
    """In double precision: where neighbours move alike the roughness is all but kinked."""
    model = copy.deepcopy(victim.model).double()
    images, labels = victim.images[:16].double(), victim.labels[:16]
    settings = {"bound": 0.1, "steps": 15, "learning_rate": 0.02, "smoothness": 0.02}
    found = Stadv(**settings).perturb(as_target(model), images, labels, 0, torch.arange(16))
    expected = textbook(model, images, labels, **settings)
    assert (expected - images).abs().flatten(1).amax(dim=1).min() > 0.05
    assert ((found - expected).abs() > 1e-4).double().mean() < 0.01


def test_breaks_images_and_a_larger_bound_more(victim):
    accuracy = [
        victim.accuracy(Stadv(bound=bound, steps=20)(victim.model, victim.images, victim.labels))
        for bound in (0.01, 0.04, 0.1)
    ]
    assert victim.accuracy(victim.images) >= accuracy[0] > accuracy[1] > accuracy[2]


def test_stop_at_success_breaks_the_same_images(victim):
    made, asked = {}, {}
    for stop in ("never", "success"):
        counts: Counter = Counter()

        def target(images, indices, counts=counts):
            counts.update(indices.tolist())
            return victim.model(images)

        target.per_image = True
        attack = Stadv(bound=0.05, steps=15, stop=stop)
        made[stop] = attack(target, victim.images, victim.labels)
        asked[stop] = counts
    broken = ~victim.correct(made["never"])
    assert 5 < broken.sum() < len(broken)
    assert torch.equal(broken, ~victim.correct(made["success"]))
    assert set(asked["never"].values()) == {16}
    for index, lost in enumerate(broken.tolist()):
        assert asked["success"][index] <= 16 if lost else asked["success"][index] == 16
    assert asked["success"].total() < 0.9 * asked["never"].total()
    torch.testing.assert_close(made["never"][~broken], made["success"][~broken], atol=1e-4, rtol=0)


def test_smoothness_holds_the_flow_together(victim):
    stiff = Stadv(bound=0.3, steps=20, smoothness=1e4)
    soft = Stadv(bound=0.3, steps=20, smoothness=0.0)
    moved = [
        (attack(victim.model, victim.images, victim.labels) - victim.images).abs().mean()
        for attack in (stiff, soft)
    ]
    assert moved[0] < 0.2 * moved[1]


def test_a_success_is_preferred_to_a_lower_objective():
    """The first step breaks the image at a roughness that resting would spare."""
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, :, 3:] = 1.0

    def model(x):
        score = 0.02 - x[:, 0, 2, 2]
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    # a flow of .02, a twentieth of a pixel, reads .05: objective .02 - .05 + .5 * 8 * .02 > .02
    attack = Stadv(bound=0.3, steps=10, learning_rate=0.02, smoothness=0.5)
    adversarial = attack(model, images, torch.tensor([0]))
    assert model(adversarial).argmax(dim=1).item() == 1


def test_the_last_iterate_or_the_best():
    """Under so much smoothness the image itself has the lowest objective, and nothing breaks it."""
    images, labels = random_images(2, 1, 6, 6), torch.tensor([0, 0])

    def model(x: Tensor) -> Tensor:
        return torch.stack([5 + x.flatten(1) @ torch.arange(36.0) / 36, x.new_zeros(len(x))], dim=1)

    attack = {r: Stadv(steps=3, smoothness=10.0, returned=r) for r in ("best", "last")}
    torch.testing.assert_close(attack["best"](model, images, labels), images, atol=1e-5, rtol=0)
    assert (attack["last"](model, images, labels) - images).abs().max() > 1e-3


def test_is_not_held_to_an_eps_ball(victim):
    assert Stadv.traits.norm == "spatial"
    adversarial = Stadv(bound=0.4, steps=15)(victim.model, victim.images, victim.labels)
    assert (adversarial - victim.images).abs().max() > 0.3


def test_wrong_parameters_are_refused():
    with pytest.raises(UserError, match="bound is 8"):
        Stadv(bound=8)
    with pytest.raises(UserError, match="steps is 0"):
        Stadv(steps=0)
    with pytest.raises(UserError, match="stop is 'always'"):
        Stadv(stop="always")
