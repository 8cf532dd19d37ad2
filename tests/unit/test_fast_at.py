"""Fast adversarial training: its step, its rate, and its end at a collapse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from purifiers.core.component import Classifier
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.training.fast_at import FastAt


class Sum(Classifier):
    """Logits (w sum x, 0), w = 1."""

    def __init__(self) -> None:
        super().__init__((1, 2, 2), 2)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        score = self.weight * images.flatten(1).sum(dim=1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_the_step_by_hand():
    """Label 0 wants a large sum: from a start in [-eps, eps] a step of 1.25 eps down, clipped."""
    eps = 0.08
    training = FastAt(eps=eps, step_size=1.25 * eps)
    images, labels = torch.full((64, 1, 2, 2), 0.5), torch.zeros(64, dtype=torch.int64)
    adversarial = training._single_step.adversarial(
        Sum().train(), images, labels, torch.arange(64), 0
    )
    moved = adversarial - images
    # a start s > .25 eps ends at s - 1.25 eps, any other at -eps: 5/8 of all pixels
    assert moved.min() >= -eps - 1e-6 and moved.max() <= -0.25 * eps + 1e-6
    share = (moved < -eps + 1e-6).float().mean()
    assert float(share) == pytest.approx(5 / 8, abs=0.1)
    expected = nn.functional.cross_entropy(Sum()(adversarial), labels)
    loss = training.loss(Sum().train(), images, labels, torch.arange(64), 0)
    torch.testing.assert_close(loss, expected)


def test_the_rate_rises_to_the_middle():
    recipe = FastAt().recipe
    rates = [recipe.rate(step, 100) for step in (25, 50, 75)]
    assert rates == pytest.approx([0.1, 0.2, 0.1])
    assert recipe.weight_decay == 5e-4 and recipe.epochs == 15 and recipe.batch_size == 128


def watched(*pgd: float) -> list[dict[str, float]]:
    return [{"single_step": 0.9, "pgd": value} for value in pgd]


def test_a_fall_of_more_than_a_fifth_ends_it():
    training = FastAt()
    assert not training.ends(watched(0.1))
    assert not training.ends(watched(0.1, 0.5, 0.31))
    assert training.ends(watched(0.1, 0.5, 0.29))
    assert not FastAt(early_end=False).ends(watched(0.1, 0.5, 0.29))
    assert "fell from 50 % to 29 % in epoch 3" in training.note(watched(0.1, 0.5, 0.29))
    assert training.note(watched(0.6, 0.7)) == ""
    assert "under PGD-10" in FastAt(early_end=False).note(watched(0.1, 0.5, 0.0))


@pytest.mark.parametrize("kill_at", [None, 3, 5])
def test_it_keeps_the_weights_before_the_collapse(tmp_path: Path, kill_at):
    """Epochs of two steps; the third of five collapses, and a killed training ends alike."""
    seen: list[float] = []
    steps = 0

    def train(kill: int | None) -> tuple[float, dict]:
        module = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(module.weight)

        def loss(images, labels, indices, seed):
            nonlocal steps
            if steps == kill:
                raise KeyboardInterrupt
            steps += 1
            return -module.weight.sum()  # each step adds the learning rate to each weight

        def watch() -> dict[str, float]:
            epochs = round(float(module.weight[0].detach()))
            seen.append(epochs)
            return watched(0.0, 0.0, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)[epochs - 1]

        recipe = Recipe(epochs=5, batch_size=2, learning_rate=1.0, checkpoint_seconds=0.0)
        summary = fit(
            module,
            loss,
            np.zeros((4, 1), np.float32),
            np.zeros(4, np.int64),
            recipe,
            0,
            tmp_path / "checkpoint",
            "run",
            "run",
            quiet=True,
            watch=watch,
            ends=FastAt().ends,
        )
        return float(module.weight[0].detach()), summary

    if kill_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train(kill_at)
    weight, summary = train(None)
    assert weight == 4.0, "the weights after the second epoch"
    assert summary["steps"] == 6 and len(summary["watched"]) == 3
    assert np.isfinite(summary["final_loss"])
