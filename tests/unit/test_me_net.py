"""ME-Net: completion by hand and by its conditions, its derivative, its masks and its training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import matrix_completion, registry
from purifiers.core.errors import UserError
from purifiers.core.matrix_completion import Completion, drawn_mask, mask_chances
from purifiers.methods.me_net import MeNet as Method
from purifiers.training import me_net as training_module
from purifiers.training.me_net import MeNet as Training


def completion(kind: str = "usvt", rank: int = 1, weight: float = 1.0, iterations: int = 100):
    return Completion(kind, rank, weight, iterations)


def image(matrix: list[list[float]]) -> Tensor:
    """A grey image whose matrix in [-1, 1] is ``matrix``."""
    return (torch.tensor(matrix)[None, None] + 1) / 2


def random_images(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(2))


def everything(images: Tensor) -> Tensor:
    return torch.ones_like(images, dtype=torch.bool)


# completion


def test_usvt_by_hand():
    images = image([[0.6, 0.4], [0.0, 0.3]])
    kept = torch.tensor([[[[True, False], [True, True]]]])
    # without the dropped entry diag(.6, .3); the largest singular value over the share 3/4
    torch.testing.assert_close(completion()(images, kept), image([[0.8, 0.0], [0.0, 0.0]]))
    both = image([[0.8, 0.0], [0.0, 0.4]])
    torch.testing.assert_close(completion(rank=2)(images, kept), both)


def test_results_are_clipped_and_dropping_everything_gives_grey():
    images = image([[0.9, 0.0], [0.0, 0.3]])
    kept = torch.tensor([[[[True, False], [False, False]]]])
    torch.testing.assert_close(completion()(images, kept), image([[1.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(completion()(images, ~everything(images)), image([[0.0] * 2] * 2))


def test_the_channels_are_side_by_side():
    images = random_images(2, (3, 4, 5))
    completed = completion(rank=2)(images, everything(images))
    for before, after in zip(images.numpy(), completed.numpy(), strict=True):
        matrix = np.concatenate(list(2 * before - 1), axis=1)
        u, s, v = np.linalg.svd(matrix)
        expected = ((u[:, :2] * s[:2]) @ v[:2]).clip(-1, 1)
        np.testing.assert_allclose(np.concatenate(list(2 * after - 1), axis=1), expected, atol=1e-5)


def test_the_nuclear_norm_by_hand():
    """All entries known: the singular values shrink by half the weight."""
    images = image([[0.8, 0.0], [0.0, 0.2]])
    kept = everything(images)
    completed = completion("nuclear_norm", weight=1.0, iterations=1)(images, kept)
    torch.testing.assert_close(completed, image([[0.3, 0.0], [0.0, 0.0]]))


def test_the_nuclear_norm_is_minimal():
    """Conditions of the minimum: 2 P(A - X) / mu is a subgradient of the nuclear norm at X."""
    images, weight = random_images(1, (1, 8, 8)), 0.5
    kept = drawn_mask(images, 0.7, 0, torch.arange(1), "")
    completed = completion("nuclear_norm", weight=weight, iterations=300)(images, kept)
    found, data = (2 * x[0, 0].double() - 1 for x in (completed, images))
    assert found.abs().max() < 1  # not clipped
    subgradient = 2 * kept[0, 0] * (data - found) / weight
    u, s, v = torch.linalg.svd(found)
    rank = int((s > 1e-4).sum())
    assert 1 < rank < 8
    torch.testing.assert_close(
        u[:, :rank].T @ subgradient @ v[:rank].T, torch.eye(rank).double(), atol=1e-4, rtol=0
    )
    assert torch.linalg.matrix_norm(subgradient, 2) < 1 + 1e-4


RULES = {
    "usvt": completion(rank=2)._largest,
    "nuclear_norm": completion("nuclear_norm", weight=0.6)._shrunk,
}


@pytest.mark.parametrize("kind", RULES)
def test_derivative_of_one_filter(kind):
    matrices = (2 * random_images(2, (4, 6)).double() - 1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda m: matrix_completion._filtered(m, RULES[kind]), matrices)


def test_derivative_where_singular_values_are_equal():
    """Two pairs of equal ones, kept and dropped; the derivative exists between the pairs."""
    values = torch.tensor([2.0, 2.0, 0.5, 0.5]).double()
    rotation = torch.linalg.qr(random_images(1, (4, 4)).double())[0]
    matrices = (rotation * values).requires_grad_(True)
    for rule in RULES.values():
        assert torch.autograd.gradcheck(
            lambda m, r=rule: matrix_completion._filtered(m, r), matrices
        )


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_no_gradient_is_nan_for_uniform_images(kind, value):
    images = torch.full((2, 3, 6, 6), value).requires_grad_(True)
    kept = drawn_mask(images, 1.0, 0, torch.arange(2), "")
    assert kept.all()
    completed = completion(kind, rank=3, iterations=3)(images, kept)
    (gradient,) = torch.autograd.grad(completed.square().sum(), images)
    assert torch.isfinite(gradient).all()


# masks


def test_masks():
    images, rows = torch.zeros(200, 3, 8, 8), torch.arange(200)
    kept = drawn_mask(images, 0.7, 1, rows, "")
    assert kept.float().mean() == pytest.approx(0.7, abs=0.01)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(drawn_mask(images[:3], 0.7, 1, rows[5:8], ""), kept[5:8])
    assert mask_chances(0.4, 0.6, 4) == pytest.approx([0.45, 0.5, 0.55, 0.6])


def test_inference_keeps_the_middle(monkeypatch):
    assert Method().chance == pytest.approx(0.9)
    method = Method(keep_start=0.4, keep_end=0.6, rank=4)
    images, rows = random_images(5, (1, 8, 8)), torch.arange(5)
    kept = drawn_mask(images, 0.5, 3, rows, "me_net")
    torch.testing.assert_close(method.purify(images, 3, rows), completion(rank=4)(images, kept))


# training


class Recorder(nn.Module):
    """Stores its images and returns logits that depend on them."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.flatten(1)[:, :2]


def test_ten_fixed_copies_per_image():
    training = Training(rank=4, keep_start=0.5, keep_end=0.6)
    images, indices = random_images(3, (1, 8, 8)), torch.tensor([0, 7, 30])
    assert training.chances == pytest.approx([0.51 + 0.01 * k for k in range(10)])
    seen: list[set[bytes]] = [set(), set(), set()]
    for seed in range(120):
        for copies, one in zip(seen, training.copies(images, indices, seed), strict=True):
            copies.add(one.numpy().tobytes())
    assert [len(copies) for copies in seen] == [10, 10, 10]
    assert not seen[0] & seen[1]


def test_each_copy_has_its_probability():
    training = Training(rank=8, keep_start=0.1, keep_end=1.0, masks=2)
    images = image([[0.5] * 8] * 8).expand(400, 1, 8, 8)
    # rank 8 of 8: kept entries are .5 / share, dropped ones 0
    shares = (training.copies(images, torch.arange(400), 1) != 0.5).float().mean(dim=(1, 2, 3))
    low, full = shares[shares < 1], shares[shares == 1]
    assert len(low) + len(full) == 400 and 150 < len(full) < 250
    assert low.mean() == pytest.approx(0.55, abs=0.02)


def test_copies_are_augmented_after_their_completion(monkeypatch):
    network, images = Recorder(), random_images(4, (1, 8, 8))
    training = Training(rank=4, augmentation="crop_flip", crop_padding=2)
    assert training.recipe.augmentation == "none"
    monkeypatch.setattr(
        training_module, "augment", lambda x, kind, seed, padding: (x + 1, kind, padding)[0]
    )
    labels, rows = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    training.loss(network.train(), images, labels, rows, 3)
    assert torch.equal(network.images, training.copies(images, rows, 3) + 1)
    training.loss(network.eval(), images, labels, rows, 3)
    assert torch.equal(network.images, training.copies(images, rows, 3))


def test_upstreams_recipe():
    recipe = Training().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (2000, 256, 1e-4)
    assert recipe.learning_rate == 0.1 and recipe.momentum == 0.9
    rates = [recipe.rate(epoch, 200) for epoch in (99, 100, 149, 150)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


# refusals


@pytest.mark.parametrize("kind", ["method", "training"])
def test_wrong_values_are_refused_when_planned(kind):
    described = registry.describe(kind, "me_net")
    wrong: dict[str, Any] = {
        **{"keep_start": 0, "keep_end": 1.2, "rank": 0, "nuclear_weight": -1},
        "iterations": 0,
    }
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"^m: {name} is {value}, but takes a "):
            described.checked(name, value, "m")


@pytest.mark.parametrize("cls", [Method, Training])
def test_choices_that_make_no_sense(cls):
    with pytest.raises(UserError, match=r"keep_start is 0.8, above keep_end, 0.5: exchange"):
        cls(keep_end=0.5)
    with pytest.raises(UserError, match="no entry is dropped: lower it"):
        cls(keep_start=1.0)
    with pytest.raises(UserError, match=r"completion is 'svd': choose one of usvt, nuclear_norm"):
        cls(completion="svd")


def test_more_singular_values_than_rows():
    with pytest.raises(UserError, match="rank is 25, but the images have 8 rows: lower it"):
        purifiers.method("me_net").purify(torch.zeros(1, 1, 8, 8))
