"""The suite's own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import settings
from rounds import has_bfloat16
from settings import Attack
from torch import Tensor
from victims import GaussianNoise, Victim

import purifiers
from purifiers.core import registry
from purifiers.core.component import Attack as SuiteAttack
from purifiers.core.prepare import Prepared
from purifiers.report.attack_timing import SUITE


def rows(victim: Victim, attack: Attack) -> dict[str, Callable[[int], Tensor]]:
    """``purifybench`` (all steps on all images), ``dropped`` (broken images leave the batch; for
    attacks that have the choice, unless the defence is random: one draw breaks nothing for good),
    and both in bfloat16 where the processor has it.

    bfloat16 not for attacks that look for the nearest image: they end on the boundary itself, where
    bfloat16's rounding decides (DeepFool left 11 of 128 images unbroken).
    """
    name, parameters = _spelled(victim, attack)
    variants = {SUITE: ("float32", parameters)}
    dropped = {**parameters, "stop": "success"}
    may_stop = not victim.noise and "stop" in registry.describe("attack", name).parameters
    if may_stop:
        variants[f"{SUITE}, dropped"] = ("float32", dropped)
    if has_bfloat16(victim.images.device.type) and attack.norm == "linf":
        variants[f"{SUITE}, bfloat16"] = ("bfloat16", parameters)
        if may_stop:
            variants[f"{SUITE}, bfloat16, dropped"] = ("bfloat16", dropped)
    return {
        title: _run(victim, purifiers.attack(name, **chosen), precision)
        for title, (precision, chosen) in variants.items()
    }


def _spelled(victim: Victim, attack: Attack) -> tuple[str, dict[str, Any]]:
    linf = {"eps": victim.eps, "steps": settings.STEPS}
    by_step = {**linf, "step_size": victim.step_size}
    cw = {"steps": settings.CW_STEPS, "initial_const": settings.CW_INITIAL_CONST}
    known: dict[str, tuple[str, dict[str, Any]]] = {
        "pgd": ("pgd", {**by_step, "random_start": False}),
        "pgd_eot": ("pgd", {**by_step, "random_start": False}),
        "mim": ("mim", by_step),
        # adv-lib's rule: the stronger one with so few steps
        "apgd": ("apgd", {**linf, "every_other": True}),
        "cw_l2": (
            "cw_l2",
            {**cw, "learning_rate": victim.cw_rate, "search_steps": attack.searches},
        ),
        # adv-lib's rule, again: the nearer one on black and white pixels
        "deepfool_l2": (
            "deepfool_l2",
            {
                "steps": settings.DEEPFOOL_STEPS,
                "overshoot": settings.OVERSHOOT,
                "clip_sum": True,
            },
        ),
    }
    return known[attack.method]


def _run(victim: Victim, attack: SuiteAttack, precision: str) -> Callable[[int], Tensor]:
    def run(seed: int) -> Tensor:
        # preparing is part of the work: it is paid once per attacked model
        model = Prepared(victim.network, precision)
        if victim.noise:
            noise = GaussianNoise(victim.noise)
            draws = settings.EOT_SAMPLES
            defended = purifiers.defend(model, [noise], seed=seed, eot_samples=draws)
            return attack(defended, victim.images, victim.labels, seed)
        return attack(model, victim.images, victim.labels, seed)

    return run
