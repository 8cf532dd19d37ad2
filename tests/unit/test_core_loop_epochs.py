"""The cosine schedule, Nesterov's momentum, and trainings that order their own epochs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe

PIXELS, LABELS = np.zeros((6, 1), np.float32), np.zeros(6, np.int64)


def train(folder: Path, recipe: Recipe, loss, module=None, **hooks):
    module = module or nn.Linear(1, 2)
    path = folder / "checkpoint"
    return fit(module, loss, PIXELS, LABELS, recipe, 0, path, "run", "run", quiet=True, **hooks)


def test_cosine_by_hand():
    recipe = Recipe(
        epochs=1, batch_size=1, learning_rate=0.5, schedule="cosine", min_learning_rate=0.1
    )
    rates = [recipe.rate(step, 100) for step in (0, 25, 50, 75, 100)]
    root = math.sqrt(0.5)
    assert rates == pytest.approx([0.5, 0.3 + 0.2 * root, 0.3, 0.3 - 0.2 * root, 0.1])


def test_nesterov_by_hand(tmp_path):
    """Gradient 1: v = 1, then 1.5; steps of 1 + .5 v: 1.5, 1.75 times the rate."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    values = []

    def loss(images, labels, indices, seed):
        values.append(module.weight.item())
        return module.weight.sum()

    recipe = Recipe(
        epochs=0, steps=2, batch_size=6, learning_rate=0.1, momentum=0.5, optimizer="nesterov"
    )
    train(tmp_path, recipe, loss, module)
    values.append(module.weight.item())
    assert np.diff(values) == pytest.approx([-0.15, -0.175])


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="nesterov needs a momentum above 0: set momentum"):
        Recipe(epochs=1, batch_size=1, learning_rate=0.1, optimizer="nesterov")


@pytest.mark.parametrize("kill_at", [None, 1, 3, 4])
def test_an_order_and_the_start_of_each_epoch(tmp_path, kill_at):
    """Epochs of three batches. A killed training learns its epoch again before it goes on."""
    recipe = Recipe(epochs=2, batch_size=2, learning_rate=0.1, checkpoint_seconds=0.0)
    module, batches, epochs = nn.Linear(1, 2), [], []
    kills = [] if kill_at is None else [kill_at]

    def loss(images, labels, indices, seed):
        if kills and len(batches) == kills[0]:
            kills.clear()
            raise KeyboardInterrupt
        batches.append((epochs[-1], indices.tolist()))
        return module.weight.square().sum()

    def order(rows, epoch):
        assert rows.tolist() == [0, 1, 2, 3, 4, 5]
        return torch.tensor([5, 0, 5, 1, 5, 2]) if epoch == 0 else rows.flip(0)

    hooks = {"order": order, "starts": epochs.append}
    if kill_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, recipe, loss, module, **hooks)
    train(tmp_path, recipe, loss, module, **hooks)
    first = [(0, [0, 5]), (0, [1, 5]), (0, [2, 5])]
    assert batches == [*first, (1, [4, 5]), (1, [2, 3]), (1, [0, 1])]
    assert epochs == {None: [0, 1], 1: [0, 0, 1], 3: [0, 1, 1], 4: [0, 1, 1]}[kill_at]
