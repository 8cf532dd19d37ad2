"""Mutual information: the estimate on data whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch

from purifiers.core.errors import UserError
from purifiers.core.information import Statistics, _averaged, mutual_information
from purifiers.core.noise import derive_seed

BRIEF = {
    **{"layers": 2, "width": 64, "learning_rate": 1e-3, "averaging": 0.01, "steps": 300},
    **{"batch_size": 256, "held_out": 0.25, "seed": 0},
}


def gaussians(rho: float, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal (count, 1) with correlation ``rho``; they share -0.5 ln(1 - rho^2) nats."""
    draw = torch.Generator().manual_seed(7)
    first, noise = (torch.randn(count, 1, generator=draw) for _ in range(2))
    return first, rho * first + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize(("rho", "allowed"), [(0.0, 0.02), (0.6, 0.06), (0.9, 0.12)])
def test_gaussians(rho: float, allowed: float) -> None:
    rows, terms = mutual_information(*gaussians(rho), **BRIEF)
    assert len(rows) == len(terms) == 500
    truth = -0.5 * math.log(1 - rho**2)
    assert float(terms.mean()) == pytest.approx(truth, abs=allowed)


def test_units_and_useless_features_change_nothing() -> None:
    """Another unit and zero, and a feature that never changes."""
    first, second = gaussians(0.8)
    moved = torch.cat([1000 * first - 3, torch.full_like(first, 5.0)], dim=1)
    plain = mutual_information(first, second, **BRIEF)[1].mean()
    assert float(mutual_information(moved, second, **BRIEF)[1].mean()) == pytest.approx(
        float(plain), abs=0.05
    )


def test_the_bound_is_taken_on_unseen_samples() -> None:
    """Twenty independent samples are soon learnt by heart: the bound must not rise with that."""
    first, second = (torch.randn(20, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    _, terms = mutual_information(first, second, **{**BRIEF, "held_out": 0.5})
    assert float(terms.mean()) < 0.1


def test_the_bound_by_hand() -> None:
    """Without a step T is what it was drawn as; the mean is over pairs of different samples."""
    first, second = gaussians(0.5, count=8)
    settings = {**BRIEF, "steps": 0, "held_out": 0.5}
    rows, terms = mutual_information(first, second, **settings)
    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == 4
    again = mutual_information(first, second, **settings)
    assert torch.equal(rows, again[0]) and torch.equal(terms, again[1])
    other = mutual_information(first, second, **{**settings, "seed": 1})
    assert not torch.equal(terms, other[1])

    train = [row for row in range(8) if row not in rows.tolist()]

    def scaled(features: torch.Tensor) -> torch.Tensor:
        return (features - features[train].mean(0)) / features[train].std(0)

    torch.manual_seed(derive_seed(0, "weights"))
    network = Statistics(1, 1, 2, 64)
    a, b = scaled(first)[rows], scaled(second)[rows]
    with torch.no_grad():
        pairs = [[float(network(a[i : i + 1], b[j : j + 1])) for j in range(4)] for i in range(4)]
    apart = [math.exp(pairs[i][j]) for i in range(4) for j in range(4) if i != j]
    expected = [pairs[i][i] - math.log(sum(apart) / 12) for i in range(4)]
    assert terms.tolist() == pytest.approx(expected, abs=1e-6)


def test_pairs_do_not_depend_on_how_many_pass_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Statistics(3, 2, 2, 8)
    first, second = torch.randn(7, 3), torch.randn(5, 2)
    whole = network.all_pairs(first, second)
    assert whole.shape == (7, 5)
    assert torch.allclose(whole[2], network(first[2:3].expand(5, 3), second), atol=1e-6)
    monkeypatch.setattr("purifiers.core.information.PAIRS", 1)
    assert torch.allclose(whole, network.all_pairs(first, second), atol=1e-6)


def test_the_papers_network() -> None:
    """Two layers of 512 over conv1 (16) and stage3 (640) of WRN-34-10."""
    with torch.device("meta"):
        network = Statistics(16, 640, 2, 512)
    weights = 656 * 512 + 512 + 512 * 512 + 512 + 512 + 1
    assert sum(p.numel() for p in network.parameters()) == weights


def test_the_moving_average() -> None:
    one, three = torch.tensor(math.log(1.0)), torch.tensor(math.log(3.0))
    assert float(_averaged(None, three, 0.25).exp()) == pytest.approx(3.0)
    assert float(_averaged(one, three, 0.25).exp()) == pytest.approx(1.5)
    assert float(_averaged(one, three, 1.0).exp()) == pytest.approx(3.0)


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mutual_information(*gaussians(0.5, 20), **{**BRIEF, "steps": 2})
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("count", "held_out"), [(4, 0.25), (4, 0.9), (2, 0.5)])
def test_too_few_samples(count: int, held_out: float) -> None:
    with pytest.raises(UserError, match="two or more"):
        mutual_information(*gaussians(0.5, count), **{**BRIEF, "held_out": held_out})


def test_infinite_features_are_no_estimate() -> None:
    first, second = gaussians(0.5, 20)
    first[3] = math.inf
    with pytest.raises(RuntimeError, match="not finite"):
        mutual_information(first, second, **{**BRIEF, "steps": 1})
