"""Seconds of attacks over their floor and over other libraries, and reads of the host per step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from purifiers.core.component import build
from purifiers.core.prepare import Prepared
from purifiers.core.registry import load
from purifiers.report.attack_timing import SUITE
from purifiers.selfcheck import loops
from purifiers.selfcheck.checks import SKIP, Check, Outcome, passed_if
from purifiers.selfcheck.context import Context
from purifiers.selfcheck.strength import EPS, victim_of
from purifiers.timing import settings
from purifiers.timing.comparison import Comparison
from purifiers.timing.rounds import FLOOR
from purifiers.timing.settings import Plan
from purifiers.timing.victims import Victim

OVER_FLOOR = {"pgd": 1.1, "mim": 1.1, "apgd": 1.5, "eot": 1.1, "cw_1": 2.0, "deepfool": 2.0}
"""Largest time of an attack over the floor of its row; our choice."""
OVER_PEER = 1.05
"""Largest time of an attack over that of the fastest library that is as strong; our choice."""
READS_PER_STEP = 0.5
"""Waits of the host for the device per step of PGD, at most; our choice."""
STEPS = 20


def checks(context: Context) -> Iterator[Check]:
    """One check per victim and attack, per plain loop, and for the waits of the host."""
    for victim in ("digits", *context.size.victims):
        for key in context.size.attacks:
            title = f"{victim}, {settings.ATTACKS[key].title}"
            yield Check(title, partial(_attack, context, victim, key))
    yield from loops.checks(context)
    yield Check("PGD-20, host reads", partial(_reads, context))


def _attack(context: Context, name: str, key: str) -> Outcome:
    victim = _victim(context, name)
    if isinstance(victim, str):
        return Outcome(SKIP, victim)
    plan = Plan(len(victim.images), (key,), ())
    comparison = Comparison(victim, key, plan, context.device)
    comparison.rounds()  # warms up
    comparison.rounds.seconds.clear()
    comparison.rounds.adversarial.clear()
    for _ in range(context.size.rounds):
        comparison.rounds()
    context.measured.setdefault("attacks", []).append(comparison.judge())
    if complaints := comparison.complaints():
        return passed_if(False, "; ".join(complaints))
    seconds = {row: median(times) for row, times in comparison.rounds.seconds.items()}
    strong = [row for row in comparison.others if _as_strong(comparison, row)]
    return over_limits(seconds, strong, OVER_FLOOR[key], context.size.slack)


def _as_strong(comparison: Comparison, row: str) -> bool:
    """Whether a row of another library is as strong as the suite's."""
    own, other = comparison.strengths[SUITE], comparison.strengths[row]
    if comparison.attack.norm == "l2":
        return other.median <= 1.01 * own.median
    return other.left <= own.left + max(1, len(comparison.victim.images) // 256)


def over_limits(seconds: dict[str, float], peers: list[str], limit: float, slack: float) -> Outcome:
    """Compare the suite's fastest row with the floor and with the fastest of ``peers``.

    Args:
        seconds: of each row; those of the suite begin with its name.
        limit: largest ratio to the floor.
        slack: factor on both limits.
    """
    own = min(value for row, value in seconds.items() if row.startswith(SUITE))
    ratio = own / seconds[FLOOR]
    reason = f"{own:.3g} s, {ratio:.2f} of the floor (limit {limit * slack:.2f})"
    good = ratio <= limit * slack
    if peers:
        fastest = min(peers, key=lambda row: seconds[row])
        reason += f", {own / seconds[fastest]:.2f} of {fastest}"
        good = good and own <= OVER_PEER * slack * seconds[fastest]
    else:
        reason += ", no other library installed"
    return passed_if(good, reason, over_floor=ratio)


def _victim(context: Context, name: str) -> Victim | str:
    if name != "digits":
        return victim_of(context, name)
    images, labels = context.digits()
    moved = images.to(context.device), labels.to(context.device)
    return Victim("digits", context.on(context.device), *moved, EPS, 0.1, "")


def _reads(context: Context) -> Outcome:
    if context.device != "cuda":
        return Outcome(SKIP, "a processor has no queue to wait for")
    images, labels = (part.to(context.device) for part in context.digits())
    network = Prepared(context.on(context.device))
    attack = build(load("attack", "pgd"), eps=EPS, step_size=EPS / 4, steps=STEPS)
    attack(network, images, labels)  # prepares
    return judged_reads(synchronisations(lambda: attack(network, images, labels)), STEPS)


def judged_reads(count: int, steps: int) -> Outcome:
    """Whether the host waits seldom enough for the device."""
    reason = f"the host waits {count} times in {steps} steps"
    return passed_if(count <= READS_PER_STEP * steps, reason, reads=count)


def synchronisations(run: Callable[[], object]) -> int:
    """Number of operations in ``run`` at which the host waits for the GPU, by torch's count."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(entry.message) for entry in caught)
