"""PixelDefend with early stopping: when the fit ends, which weights it keeps, and after a kill."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from purifiers.core import loop
from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.methods._pixel_cnn import log_likelihood
from purifiers.methods.pixel_defend import HALVED_EVERY, PixelDefend
from purifiers.plan.graph import component_spec

COUNT, EPOCHS, PATIENCE = 12, 40, 3
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 4, 4), dtype=np.uint8)
SETTINGS: dict[str, Any] = {
    "scales": 1, "blocks": 1, "filters": 8, "mixtures": 3, "dropout": 0.0, "learning_rate": 0.03,
    "batch_size": 2, "epochs": EPOCHS, "validation": 0.5, "early_stopping": PATIENCE,
}  # fmt: skip


class Killed(Exception):
    pass


class Loss:
    """The method's loss; keeps each held-out loss and image, and is killed at a step."""

    def __init__(self, method: PixelDefend, kill_at: int | None = None) -> None:
        self.method, self.kill_at, self.steps = method, kill_at, 0
        self.held_out: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        if self.method.training:
            if self.steps == self.kill_at:
                raise Killed
            self.steps += 1
        else:
            self.held_out.append(images)
        return self.method.fit_loss(images, labels, indices, seed)


def made(**changes: Any) -> PixelDefend:
    torch.manual_seed(0)
    method = build(PixelDefend, **(SETTINGS | changes))
    method.bind(None, PIXELS.shape[1:])
    method.fit_on([], COUNT)
    return method


def fit(method: PixelDefend, folder: Path, kill_at: int | None = None) -> tuple[dict, Loss]:
    loss, labels = Loss(method, kill_at), np.zeros(COUNT, dtype=np.int64)
    recipe = replace(method.recipe, checkpoint_seconds=0.0)
    folder.mkdir(exist_ok=True)
    summary = loop.fit(
        method.train(), loss, PIXELS, labels, recipe, 0, folder / "c", "x", "x", quiet=True
    )
    return summary, loss


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[PixelDefend, dict, Loss]:
    method = made()
    return method, *fit(method, tmp_path_factory.mktemp("fit"))


def test_random_images_cannot_be_learned_and_the_fit_ends(fitted) -> None:
    """What is learned of six random images makes six others less likely after a few epochs."""
    _, summary, loss = fitted
    assert 1 < summary["best_epoch"] < EPOCHS - PATIENCE
    assert summary["steps"] == 3 * (summary["best_epoch"] + PATIENCE) == loss.steps


def test_the_averaged_weights_of_the_best_epoch_are_kept(fitted) -> None:
    """They are those that purify, and the ones whose bits per dimension decided."""
    method, summary, loss = fitted
    held_out = (255 * torch.cat(loss.held_out[:3])).round().long()
    vector_to_parameters(method.averaged, method.network.parameters())
    with torch.no_grad():
        bits = -log_likelihood(method.network.eval(), held_out).mean().item() / math.log(2)
    assert bits == pytest.approx(summary["validation_loss"], abs=1e-5)
    assert method.steps.item() == 3 * summary["best_epoch"]


@pytest.mark.parametrize("kill_at", [1, 3, 10])
def test_killed_it_ends_with_the_same_bits(fitted, tmp_path: Path, kill_at: int) -> None:
    whole, expected, _ = fitted
    with pytest.raises(Killed):
        fit(made(), tmp_path, kill_at)
    again = made()
    summary, loss = fit(again, tmp_path)
    assert loss.steps == expected["steps"] - kill_at
    for key in ("steps", "validation_loss", "best_epoch", "final_loss"):
        assert summary[key] == expected[key]
    assert torch.equal(again.averaged, whole.averaged)


def test_the_rate_is_halved_after_as_many_steps_as_without_held_out_images() -> None:
    method = made(epochs=1000, batch_size=48, validation=0.05)
    method.fit_on([], 50_000)
    steps = math.ceil(47_500 / 48) * 1000
    assert [round(share * steps) for share in method.recipe.milestones] == [
        number * HALVED_EVERY for number in range(1, 8)
    ]


def test_a_fit_that_never_stops_keeps_its_identity() -> None:
    assert not {"validation", "early_stopping"} & set(
        component_spec("method", "pixel_defend", {}).parameters
    )


def test_early_stopping_needs_held_out_images() -> None:
    with pytest.raises(UserError, match="set validation"):
        made(validation=0.0)
