"""A success counts only if the original network, as the caller has it, is wrong in float32."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core import noise, prepare
from purifiers.core.component import Attack, Method, build, default_indices
from purifiers.core.defence import Defence
from purifiers.core.evaluation import attacked_defence
from purifiers.core.prepare import Prepared
from purifiers.core.traits import MethodTraits

BONUS = 0.5
"""What the misjudging network adds to four logits; other logits are up to 20."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepfool_l2": ("deepfool_l2", {}),
    "deepfool_linf": ("deepfool_linf", {"eps": 1.0}),
    "cw_l2": ("cw_l2", {"steps": 60, "search_steps": 2, "initial_const": 3, "learning_rate": 0.1}),
    "cw_linf": ("cw_linf", {"eps": 0.3}),
    "pgd": ("pgd", {"eps": 0.3, "step_size": 0.02, "steps": 15, "stop": "success"}),
    "mim": ("mim", {"eps": 0.3, "step_size": 0.02, "steps": 15, "stop": "success"}),
    "pgd_l2": ("pgd_l2", {"radius": 4.0, "step_length": 0.2, "steps": 20, "stop": "success"}),
    "square": ("square", {"eps": 0.3, "queries": 300, "stop": "success"}),
    "spsa": ("spsa", {"eps": 0.3, "steps": 20, "samples": 64, "stop": "success"}),
    "stadv": ("stadv", {"bound": 0.5, "steps": 30, "learning_rate": 0.05, "stop": "success"}),
}  # fmt: skip


@pytest.fixture
def misjudged(victim, monkeypatch) -> nn.Module:
    """A network whose prepared copy favours four classes a little."""
    fold = prepare._fold

    def badly(graph: Any) -> None:
        fold(graph)
        last = [part for part in graph.modules() if isinstance(part, nn.Linear)][-1]
        last.bias.data[::3] += BONUS

    monkeypatch.setattr(prepare, "_fold", badly)
    monkeypatch.setattr(prepare, "ROUNDING", 1.0)
    return copy.deepcopy(victim.model)


def left(network: nn.Module, model: Any, attack: Attack, victim) -> int:
    """Images that the original network still classifies correctly."""
    right = victim.correct(victim.images)
    images, labels = victim.images[right], victim.labels[right]
    return int((network(attack(model, images, labels, 1)).argmax(dim=1) == labels).sum())


@pytest.mark.parametrize("defended", [False, True], ids=["prepared", "defence"])
@pytest.mark.parametrize("case", CASES)
def test_a_misjudging_copy_costs_no_success(victim, misjudged, case, defended) -> None:
    attack = purifiers.attack(CASES[case][0], **CASES[case][1])
    model = attacked_defence(misjudged, [], 0) if defended else Prepared(misjudged)
    prepared = model.network if defended else model
    with torch.no_grad():
        difference = prepared(victim.images) - misjudged(victim.images)
    assert difference.max() > 0.9 * BONUS and not prepared.fallback
    assert left(misjudged, model, attack, victim) <= left(misjudged, misjudged, attack, victim) + 1


def test_an_image_is_restarted_until_the_original_is_wrong(victim, misjudged) -> None:
    def run(restarts: int) -> Tensor:
        attack = purifiers.attack("pgd", eps=0.05, step_size=0.02, steps=3, restarts=restarts)
        return attack(Prepared(misjudged), victim.images, victim.labels)

    once, twice = run(1), run(2)
    wrong_in_the_copy = Prepared(misjudged)(once).argmax(dim=1) != victim.labels
    right = victim.correct(once)
    assert (wrong_in_the_copy & right).any()
    assert not (once == twice)[right].flatten(1).all(dim=1).any()


def test_autoattack_returns_what_the_original_gets_wrong(victim, misjudged) -> None:
    attack = purifiers.attack(
        "autoattack", eps=0.05, apgd_steps=5, fab_steps=5, targets=3, square_queries=20
    )
    made = attack(Prepared(misjudged), victim.images, victim.labels)
    changed = (made != victim.images).flatten(1).any(dim=1)
    assert changed.any() and not victim.correct(made)[changed].any()


class Judged(nn.Module):
    """A network that counts what it is asked as the judge of itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, 0

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def exact(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.network(images)


class Noisy(Method):
    traits = MethodTraits(version=1, random=True)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        rows = default_indices(images, indices)
        return images + noise.uniform(seed, rows, images.shape[1:], low=-0.2, high=0.2)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_random_defence_confirms_with_the_same_draws(victim, draws) -> None:
    """So an agreeing judge neither changes a decision nor the noise of later steps."""
    attack = purifiers.attack("cw_l2", steps=20, search_steps=1, initial_const=3.0)
    made, asked = [], 0
    for network in (victim.model, Judged(victim.model)):
        defence = Defence(victim.model, [build(Noisy)], eot_samples=draws, network=network)
        made.append(attack(defence, victim.images[:12], victim.labels[:12], 1))
        asked = getattr(network, "asked", 0)
    assert torch.equal(*made) and asked > 0
    assert not torch.equal(made[0], victim.images[:12])


def test_each_image_that_stops_costs_one_more_pass(victim) -> None:
    judged = Judged(victim.model)
    attack = purifiers.attack("pgd", eps=0.3, step_size=0.02, steps=20, stop="success")
    made = attack(judged, victim.images, victim.labels)
    assert judged.asked == int((~victim.correct(made)).sum()) > 50
