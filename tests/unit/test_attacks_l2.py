"""PGD in the L2 ball against closed forms and a small network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifiers.attacks._l2 import direction, project, random_start
from purifiers.attacks.pgd_l2 import PgdL2
from purifiers.core.errors import UserError

RADIUS = 0.8


def distances(points: Tensor, images: Tensor) -> Tensor:
    return (points.double() - images.double()).flatten(1).norm(dim=1)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("stop", ["never", "success"])
def test_a_linear_model_loses_radius_times_norm(start, stop):
    """Far from 0 and 1 the margin falls by exactly radius * ||w||."""
    noise = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 2, 4, 4, generator=noise)
    images = 0.4 + 0.2 * torch.rand(5, 2, 4, 4, generator=noise)

    def score(x):
        return (x * weights).sum(dim=(1, 2, 3))

    def model(x):
        return torch.stack([score(x) + 30, -score(x)], dim=1)

    labels = torch.zeros(5, dtype=torch.int64)
    attack = PgdL2(radius=0.3, step_length=0.05, steps=60, random_start=start, stop=stop)
    lost = score(images) - score(attack(model, images, labels))
    torch.testing.assert_close(lost, (0.3 * weights.norm()).expand(5), atol=1e-4, rtol=0)


def test_one_step_by_hand():
    def model(x):
        score = 3 * x[:, 0, 0, 0] + 4 * x[:, 0, 0, 1]
        return torch.stack([score, -score], dim=1)

    image, label = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([0])

    def after(**settings):
        return PgdL2(radius=0.4, random_start=False, **settings)(model, image, label).flatten()

    # along -(.6, .8)
    torch.testing.assert_close(after(step_length=0.1, steps=1), torch.tensor([0.44, 0.42]))
    torch.testing.assert_close(after(step_length=0.1, steps=9), torch.tensor([0.26, 0.18]))
    image = torch.tensor([[[[0.5, 0.1]]]])
    # the second pixel stops at 0, then the first goes on alone
    torch.testing.assert_close(after(step_length=0.2, steps=2), torch.tensor([0.26, 0.0]))


def test_direction_survives_vanishing_gradients():
    vectors = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2) * torch.tensor([1, 1e-30, 1e30, 0.0]).view(
        4, 1, 1, 1
    )
    expected = torch.tensor([[0.6, 0.8]] * 3 + [[0.0, 0.0]])
    torch.testing.assert_close(direction(vectors).flatten(1), expected)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 224, 224), (1, 2, 2)])
@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
def test_projection_ends_in_the_ball(shape, radius):
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(3, *shape, generator=noise)
    shift = direction(torch.randn(3, *shape, generator=noise))
    far = project(images + 1.7 * radius * shift, images, radius)
    assert (distances(far, images) <= radius * (1 + 1e-5)).all()
    assert far.min() >= 0 and far.max() <= 1
    middle = torch.full_like(images, 0.5)
    on_edge = project(middle + 1.7 * radius * shift, middle, radius)
    if radius * shift.abs().max() < 0.5:
        torch.testing.assert_close(
            distances(on_edge, middle), torch.full((3,), radius).double(), rtol=1e-5, atol=0
        )
    inside = (images + 0.01 * radius * shift).clamp(0, 1)
    torch.testing.assert_close(project(inside, images, radius), inside)


def test_random_start_is_uniform_in_the_ball():
    images = torch.full((2000, 1, 1, 3), 0.5)
    shift = (random_start(images, 0.4, 0, torch.arange(2000), "pgd_l2") - images) / 0.4
    # in three dimensions the cube of the distance is uniform
    counts = torch.histc(shift.flatten(1).norm(dim=1) ** 3, bins=5, min=0, max=1)
    # 400 in each fifth, standard deviation 18
    assert counts.sum() == 2000 and counts.min() > 320 and counts.max() < 480
    assert shift.flatten(1).mean(dim=0).abs().max() < 0.05


def test_random_start_belongs_to_the_image(victim):
    start = random_start(victim.images[:6], RADIUS, 5, torch.arange(10, 16), "pgd_l2")
    alone = random_start(victim.images[4:5], RADIUS, 5, torch.tensor([14]), "pgd_l2")
    assert torch.equal(start[4:5], alone)
    assert not torch.equal(
        start, random_start(victim.images[:6], RADIUS, 6, torch.arange(10, 16), "pgd_l2")
    )


def test_stop_at_success_breaks_the_same_images(victim):
    made, seen = {}, {"never": 0, "success": 0}
    for stop in seen:

        def counted(x, stop=stop):
            seen[stop] += len(x)
            return victim.model(x)

        attack = PgdL2(radius=RADIUS, step_length=0.2, steps=12, stop=stop)
        made[stop] = attack(counted, victim.images, victim.labels)
    survivors = victim.correct(made["never"])
    assert 0 < survivors.sum() < len(survivors)
    assert torch.equal(survivors, victim.correct(made["success"]))
    torch.testing.assert_close(
        made["never"][survivors], made["success"][survivors], atol=1e-4, rtol=0
    )
    assert seen["never"] == 12 * 64
    assert seen["success"] < 0.8 * seen["never"]


def test_stronger_budgets_break_more(victim):
    accuracy = []
    for radius in (0.01, 0.5, 1.5):
        attack = PgdL2(radius=radius, step_length=radius / 8)
        adversarial = attack(victim.model, victim.images, victim.labels)
        assert (distances(adversarial, victim.images) <= radius * (1 + 1e-5)).all()
        accuracy.append(victim.accuracy(adversarial))
    assert accuracy[0] > accuracy[1] > accuracy[2]


def test_batches_and_batch_mates_do_not_matter(victim):
    attack = PgdL2(radius=RADIUS, step_length=0.2, steps=6, stop="success")
    images, labels, indices = victim.images, victim.labels, torch.arange(64) + 500
    whole = attack(victim.model, images, labels, 2, indices)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    parts = [attack(victim.model, images[r], labels[r], 2, indices[r]) for r in order.split(19)]
    torch.testing.assert_close(torch.cat(parts)[order.argsort()], whole, atol=1e-4, rtol=0)


def test_lengths():
    assert PgdL2(radius="128/255").radius == 128 / 255
    assert PgdL2().step_length == 2.5 * PgdL2().radius / PgdL2().steps
    for wrong in ({"radius": 0.0}, {"step_length": -1.0}):
        with pytest.raises(UserError, match="a length above 0 is needed"):
            PgdL2(**wrong)
    with pytest.raises(UserError, match="not a length"):
        PgdL2(radius="half")
