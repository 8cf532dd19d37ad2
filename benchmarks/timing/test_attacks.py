"""Speed and strength of the suite's attacks compared with those of other libraries.

Every round runs every library once on the same images. The benchmark's own statistics are the wall
time of whole rounds; the time of each library is in its ``extra_info``.
"""

from __future__ import annotations

import functools
from typing import Any

import floor
import peers
import pytest
import settings
import suite
import victims
from rounds import Rounds, machine, record, strength, strongest
from victims import Victim

from purifiers.core.errors import UserError
from purifiers.core.provenance import version_of
from purifiers.report.attack_timing import SUITE

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
    plan, attack = settings.PLANS[device, name], settings.ATTACKS[key]
    if key not in plan.attacks:
        pytest.skip(f"{key} on {name} is not in the plan for {device}")
    loaded = load(name, pytestconfig.getoption("--images") or plan.images, device)
    if isinstance(loaded, UserError):
        pytest.skip(str(loaded))
    victim = loaded.first(max(1, len(loaded.images) // attack.share))
    if attack.method == "pgd_eot":
        victim = victim.defended()

    without = [library for library, attack_key in plan.without if attack_key == key]
    others = peers.rows(victim, attack, key in plan.as_is, without)
    ours = suite.rows(victim, attack)
    rounds = Rounds({**floor.rows(victim, attack), **others, **ours}, device)
    count = pytestconfig.getoption("--rounds") or settings.ROUNDS
    benchmark.pedantic(rounds, rounds=count, iterations=1)

    strengths = {
        row: strength(victim, attack, images) for row, images in rounds.adversarial.items()
    }
    rivals = {row: strengths[row] for row in others}
    best = strongest(attack, rivals) if rivals else None
    versions = peers.versions() | {SUITE: version_of("purifybench")}
    benchmark.extra_info.update(
        attack=attack.title,
        norm=attack.norm,
        victim=name,
        **machine(device),
        n_images=len(victim.images),
        eps=victim.eps,
        data=victim.data,
        missing=peers.missing(),
        rows=record(rounds, strengths, best, versions),
    )
    if best is not None:
        tolerated = max(1, len(victim.images) // 256)
        for row in ours:
            suite_strength, best_strength = strengths[row], rivals[best]
            extra_unbroken = suite_strength.left - best_strength.left
            assert extra_unbroken <= tolerated, (
                f"{row} leaves {extra_unbroken:.1f} images more unbroken than {best}"
            )
            if attack.norm == "l2":
                ratio = suite_strength.median / best_strength.median
                assert ratio <= 1.01, f"{row} needs {ratio:.4f} times the distance of {best}"
