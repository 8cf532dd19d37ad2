"""Rows of the suite's own attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from purifiers.core import registry
from purifiers.core.component import Attack as SuiteAttack
from purifiers.core.component import build
from purifiers.core.defence import Defence
from purifiers.core.prepare import Prepared
from purifiers.report.attack_timing import SUITE
from purifiers.timing import settings
from purifiers.timing.rounds import has_bfloat16
from purifiers.timing.settings import Attack
from purifiers.timing.victims import GaussianNoise, Victim


def rows(victim: Victim, attack: Attack) -> dict[str, Callable[[int], Tensor]]:
    """Variants of an attack: all steps on all images, broken images dropped, and bfloat16.

    ``purifybench`` makes all steps on all images. ``dropped`` removes broken images from the batch;
    it exists for attacks with that option, unless the defence is random, where one draw does not
    break an image for good. Both are repeated in bfloat16 where the device supports it.

    bfloat16 is omitted for attacks that minimise the perturbation: they end on the decision
    boundary, where bfloat16's rounding decides the label (DeepFool left 11 of 128 images unbroken).
    """
    name, parameters = _parameters(victim, attack)
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
        title: _run(victim, build(registry.load("attack", name), **arguments), precision)
        for title, (precision, arguments) in variants.items()
    }


def _parameters(victim: Victim, attack: Attack) -> tuple[str, dict[str, Any]]:
    linf = {"eps": victim.eps, "steps": settings.STEPS}
    by_step = {**linf, "step_size": victim.step_size}
    cw = {"steps": settings.CW_STEPS, "initial_const": settings.CW_INITIAL_CONST}
    by_method: dict[str, tuple[str, dict[str, Any]]] = {
        "pgd": ("pgd", {**by_step, "random_start": False}),
        "pgd_eot": ("pgd", {**by_step, "random_start": False}),
        "mim": ("mim", by_step),
        # adv-lib's rule, which is stronger with so few steps
        "apgd": ("apgd", {**linf, "every_other": True}),
        "cw_l2": (
            "cw_l2",
            {**cw, "learning_rate": victim.cw_rate, "search_steps": attack.searches},
        ),
        # adv-lib's rule, which gives smaller perturbations on black and white pixels
        "deepfool_l2": (
            "deepfool_l2",
            {
                "steps": settings.DEEPFOOL_STEPS,
                "overshoot": settings.OVERSHOOT,
                "clip_sum": True,
            },
        ),
    }
    return by_method[attack.method]


def _run(victim: Victim, attack: SuiteAttack, precision: str) -> Callable[[int], Tensor]:
    def run(seed: int) -> Tensor:
        # preparation is timed too: it is needed once per attacked model
        model: Any = Prepared(victim.network, precision)
        if victim.noise:
            noise = GaussianNoise(victim.noise)
            draws = settings.EOT_SAMPLES
            defended = Defence(model, [noise], seed=seed, eot_samples=draws)
            return attack(defended, victim.images, victim.labels, seed)
        return attack(model, victim.images, victim.labels, seed)

    return run
