"""purifiers.timing on a tiny network: what it measures, and how it judges."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def timing() -> Any:
    """Imports a module of purifiers.timing."""
    return lambda name: importlib.import_module(f"purifiers.timing.{name}")


@pytest.fixture
def victim(timing: Any) -> Any:
    """Eight random images and a random linear network that classifies all of them correctly."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        labels = network(images).argmax(1)
    return timing("victims").Victim("tiny", network, images, labels, 0.1, 0.1, "")


def test_every_attack_has_a_floor_and_rows_of_the_suite(timing: Any, victim: Any) -> None:
    for attack in timing("settings").ATTACKS.values():
        attacked = victim.defended() if attack.method == "pgd_eot" else victim
        (floor,) = timing("floor").rows(attacked, attack).values()
        floor(0)
        rows = timing("suite").rows(attacked, attack)
        assert "purifybench" in rows
        for run in rows.values():
            found = timing("rounds").strength(attacked, attack, [run(0)])
            assert not found.kept.all() and found.black == 0


def test_the_floor_counts_what_deepfool_still_has_to_move(timing: Any, victim: Any) -> None:
    victim.labels[:3] = (victim.labels[:3] + 1) % 10
    counts = timing("floor")._active(victim.frozen(), victim.images, victim.labels)
    assert counts[0] == 5 and counts == sorted(counts, reverse=True)


def test_slow_rows_run_once_and_the_order_turns(timing: Any, monkeypatch: Any) -> None:
    now, ran = [0.0], []

    def lasting(name: str, seconds: float) -> Any:
        def run(seed: int) -> None:
            ran.append(name)
            now[0] += seconds

        return run

    runs = {"floor": lasting("floor", 1), "a": lasting("a", 2), "b": lasting("b", 1)}
    rounds = timing("rounds").Rounds({**runs, "slow": lasting("slow", 99)}, "cpu")
    rounds.clock = lambda: now[0]
    for _ in range(3):
        rounds()
    assert ran == [*("floor", "a", "b", "slow"), *("floor", "b", "a"), *("floor", "a", "b")]
    assert rounds.seconds == {"floor": [1, 1, 1], "a": [2, 2, 2], "b": [1, 1, 1], "slow": [99]}


def test_a_black_image_is_not_a_broken_one(timing: Any, victim: Any) -> None:
    settings, strength = timing("settings"), timing("rounds").strength
    black = torch.zeros_like(victim.images)
    found = strength(victim, settings.ATTACKS["cw_1"], [black])
    assert found.kept.all() and found.black == 8 and found.median == math.inf


def test_images_outside_the_ball_are_refused(timing: Any, victim: Any) -> None:
    settings, strength = timing("settings"), timing("rounds").strength
    moved = (victim.images + 0.2).clamp(0, 1)
    with pytest.raises(RuntimeError, match="eps ball"):
        strength(victim, settings.ATTACKS["pgd"], [moved])
    with pytest.raises(RuntimeError, match="finite"):
        strength(victim, settings.ATTACKS["cw_1"], [moved / 0])
