"""Jacobian-based data set augmentation against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier, build
from purifiers.core.errors import UserError
from purifiers.training.jacobian_substitute import JacobianSubstitute

WEIGHT = torch.tensor([[1.0, -2.0, 0.0, 3.0], [-1.0, 5.0, 2.0, -0.1]])


class Linear(Classifier):
    """Logits = W x: the Jacobian is W."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), 2)
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def test_a_move_follows_the_sign_of_the_labels_row():
    """x + .1 sign(W[y]): the length of a row does not matter, and a pixel without weight stays."""
    images = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.4, 0.6, 0.8]]).view(2, 1, 2, 2)
    moved = JacobianSubstitute(negative_rounds=0).augment(
        Linear().eval(), images, torch.tensor([0, 1]), trained=1
    )
    expected = torch.tensor([[0.6, 0.4, 0.5, 0.6], [0.1, 0.5, 0.7, 0.7]])
    torch.testing.assert_close(moved.flatten(1), expected)


def test_the_label_decides_and_not_the_prediction():
    images = torch.full((2, 1, 2, 2), 0.5)
    moved = JacobianSubstitute().augment(Linear().eval(), images, torch.tensor([0, 1]), 1)
    assert not torch.equal(*moved)


@pytest.mark.parametrize(("trained", "sign"), [(1, -1), (2, -1), (3, -1), (4, 1), (5, 1)])
def test_the_first_three_moves_go_against_the_gradient(trained, sign):
    """Both repositories count from 0: their factor is -1 for rho < 3, then 1."""
    images = torch.full((1, 1, 2, 2), 0.5)
    moved = JacobianSubstitute().augment(Linear().eval(), images, torch.tensor([0]), trained)
    torch.testing.assert_close((moved - images).flatten(), sign * 0.1 * WEIGHT[0].sign())


def test_moved_images_are_images():
    images = torch.tensor([0.95, 0.95, 0.0, 0.05]).view(1, 1, 2, 2)
    recipe = JacobianSubstitute(augmentation_step="51/255", negative_rounds=0)
    moved = recipe.augment(Linear().eval(), images, torch.tensor([0]), 1)
    torch.testing.assert_close(moved.flatten(), torch.tensor([1.0, 0.75, 0.0, 0.25]))
    assert moved.dtype == torch.float32 and moved.max() <= 1.0


def test_an_image_moves_alone_and_the_network_is_left_alone():
    torch.manual_seed(0)
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 1, 0, 1])
    classifier, recipe = Linear().eval(), JacobianSubstitute()
    together, given = recipe.augment(classifier, images, labels, 1), images.clone()
    single = [recipe.augment(classifier, images[i : i + 1], labels[i : i + 1], 1) for i in range(5)]
    assert torch.equal(torch.cat(single), together)
    assert torch.equal(images, given) and not together.requires_grad
    assert classifier.weight.grad is None and classifier.weight.requires_grad


def test_a_broken_substitute_is_no_reason_to_stand_still():
    classifier = Linear().eval()
    classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite"):
        JacobianSubstitute().augment(classifier, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), 1)


def test_the_defaults_are_those_of_the_repository():
    """`lihebi/AdvAE`: 150 images, 6 trainings, each Adam 1e-3 in batches of 128, up to 100 epochs,
    a tenth held out, halved after 4 epochs without progress down to 5e-5, ended after 10."""
    made = JacobianSubstitute()
    assert (made.seed_images, made.rounds, made.augmentation_step) == (150, 6, 0.1)
    recipe = made.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adam", 0.001, 0.0)
    assert (recipe.batch_size, recipe.epochs, recipe.validation) == (128, 100, 0.1)
    assert (recipe.schedule, recipe.learning_rate_decay, recipe.patience) == ("plateau", 0.5, 4)
    assert (recipe.min_learning_rate, recipe.early_stopping) == (5e-5, 10)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"seed_images": 0}, "seed_images is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"seed_labels": "true"}, "seed_labels is 'true': choose one of dataset, oracle"),
        ({"augmentation_step": 25.5}, "augmentation_step is 25.5.*write 25.5/255"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, line):
    with pytest.raises(UserError, match=line):
        build(JacobianSubstitute, **parameters)
