"""Fits with convolutions and matrix products in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import registry
from purifiers.core.component import frozen

SHAPE = (1, 16, 16)
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(24, *SHAPE, generator=DRAW)
LABELS = torch.arange(24) % 3
SMALL: dict[str, dict[str, Any]] = {
    "aid": {"width": 8, "train_steps": 2, "batch_size": 8, "learning_rate": 0.001},
    "nrp": {"blocks": 1, "channels": 4, "attack_steps": 2, "epochs": 2, "batch_size": 8},
    "pixel_defend": {"scales": 2, "blocks": 1, "filters": 4, "epochs": 1, "batch_size": 8},
    "adv_ae": {
        **{"width": 4, "steps": 2, "epochs": 1, "batch_size": 8, "learning_rate": 0.0001},
        **{"validation": 0.0, "early_stopping": 0, "schedule": "step"},
    },
}


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return frozen(purifiers.classifier("wide_resnet", SHAPE, 3, depth=10, widen_factor=1))


@pytest.mark.parametrize("name", SMALL)
def test_a_fit_in_bfloat16_is_close_to_one_in_float32(
    name: str, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and losses stay float32; the losses differ by rounding."""
    losses: dict[str, list[Tensor]] = {}

    def fitted(precision: str) -> dict[str, Tensor]:
        method = purifiers.method(name, **SMALL[name], precision=precision)
        step, losses[precision] = method.fit_loss, []

        def seen(*given: Any) -> Tensor:
            loss = step(*given)
            losses[precision].append(loss.detach())
            return loss

        monkeypatch.setattr(method, "fit_loss", seen)
        purifiers.fit(method, network, IMAGES, LABELS, seed=1, progress=False)
        return method.state_dict()

    weights = {precision: fitted(precision) for precision in ("float32", "bfloat16")}
    assert {loss.dtype for of_run in losses.values() for loss in of_run} == {torch.float32}
    exact, coarse = (torch.stack(losses[precision]) for precision in ("float32", "bfloat16"))
    assert len(exact) >= 3 and not torch.equal(exact, coarse)
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.01)
    assert all(w.dtype != torch.bfloat16 for w in weights["bfloat16"].values())


@pytest.mark.parametrize("name", SMALL)
def test_the_default_leaves_identities_alone(name: str) -> None:
    traits = registry.describe("method", name).traits
    assert "precision" in traits.joined_later and "precision" in traits.budget
