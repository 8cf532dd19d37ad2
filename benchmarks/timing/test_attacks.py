"""Speed and strength of the suite's attacks compared with those of other libraries.

Every round runs every library once on the same images. The benchmark's own statistics are the wall
time of whole rounds; the time of each library is in its ``extra_info``.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from purifiers.core.errors import UserError
from purifiers.timing import settings, victims
from purifiers.timing.comparison import Comparison
from purifiers.timing.victims import Victim

CASES = [(name, attack) for name in ("mnist", "cifar10") for attack in settings.ATTACKS]


@functools.cache
def load(name: str, images: int, device: str) -> Victim | UserError:
    """The victim, or the error if its data are missing."""
    try:
        return getattr(victims, name)(images, device)
    except UserError as error:
        return error


@pytest.mark.parametrize(("name", "key"), CASES, ids=["-".join(case) for case in CASES])
def test_attack(
    name: str, key: str, device: str, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    """Measure speed and strength; fail if another library is stronger than the suite."""
    plan = settings.PLANS[device, name]
    if key not in plan.attacks:
        pytest.skip(f"{key} on {name} is not in the plan for {device}")
    loaded = load(name, pytestconfig.getoption("--images") or plan.images, device)
    if isinstance(loaded, UserError):
        pytest.skip(str(loaded))
    comparison = Comparison(loaded, key, plan, device)
    count = pytestconfig.getoption("--rounds") or settings.ROUNDS
    benchmark.pedantic(comparison.rounds, rounds=count, iterations=1)
    benchmark.extra_info.update(comparison.judge())
    assert not comparison.complaints()
