"""As many broken images in every precision as in float32, judged in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.core.precision import computing
from purifiers.core.prepare import Prepared
from purifiers.selfcheck.checks import SKIP, Check, Outcome, passed_if
from purifiers.selfcheck.context import Context
from purifiers.timing import settings, victims

ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "mim": {},
    "apgd": {},
    "pgd_l2": {"radius": 1.0, "step_length": 0.2},
    "deepfool_l2": {},
    "deepfool_linf": {},
    "cw_l2": {"search_steps": 1, "initial_const": 3.0},
    "cw_linf": {},
}
"""Attacks and their parameters, beside steps, eps and rate."""
EPS = 0.06
"""Radius that breaks about half of the digits; our choice."""
AMBIENT = "process default"
"""Variant in which the process lets float32 operations round to TF32, as torch does by default."""


def checks(context: Context) -> Iterator[Check]:
    """One check per victim, precision and attack."""
    # a processor computes tf32 as float32
    lower = ["tf32", AMBIENT, "bfloat16"] if context.device == "cuda" else ["bfloat16"]
    for victim in ("digits", *context.size.victims):
        for precision in lower:
            for name in ATTACKS:
                run = partial(_strength, context, victim, name, precision)
                yield Check(name, run, f"{victim}, {precision}")


def _strength(context: Context, victim: str, name: str, precision: str) -> Outcome:
    subject = _subject(context, victim)
    if isinstance(subject, str):
        return Outcome(SKIP, subject)
    network, images, labels, eps, rate = subject
    parameters = {"steps": context.size.steps, **ATTACKS[name]}
    accepted = registry.describe("attack", name).parameters
    for key, value in {"eps": eps, "step_size": eps / 4, "learning_rate": rate}.items():
        if key in accepted and key not in parameters:
            parameters[key] = value
    attack = build(registry.load("attack", name), **parameters)

    def left_in(variant: str) -> int:
        with _ambient_tf32() if variant == AMBIENT else contextlib.nullcontext():
            declared = None if variant == AMBIENT else variant
            adversarial = attack(Prepared(network), images, labels, 1, precision=declared)
        return unbroken(network, adversarial, labels)

    in_float32 = context.remembered(("strength", victim, name), lambda: left_in("float32"))
    return judged(in_float32, left_in(precision), len(images))


def judged(in_float32: int, left: int, n_images: int) -> Outcome:
    """Compare the numbers of unbroken images, judged in float32."""
    reason = f"{left} of {n_images} unbroken, {in_float32} in float32"
    allowed = max(1, n_images // 256)
    return passed_if(
        left <= in_float32 + allowed, reason, difference=left - in_float32, unbroken=left
    )


def unbroken(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Images that the original network classifies correctly in float32."""
    with torch.no_grad(), computing("float32", images.device):
        return int((network(images).argmax(1) == labels).sum())


@contextlib.contextmanager
def _ambient_tf32() -> Iterator[None]:
    """Torch's switches as a careless script has them; restored afterwards."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _subject(context: Context, victim: str) -> tuple[nn.Module, Tensor, Tensor, float, float] | str:
    """Network, images, labels, eps and C&W's rate; or why there are none."""
    if victim == "digits":
        images, labels = context.digits()
        network = context.on(context.device)
        return network, images.to(context.device), labels.to(context.device), EPS, 0.1
    loaded = victim_of(context, victim)
    if isinstance(loaded, str):
        return loaded
    return loaded.frozen(), loaded.images, loaded.labels, loaded.eps, loaded.cw_rate


def victim_of(context: Context, name: str) -> victims.Victim | str:
    """A victim of the timing benchmark, loaded once; or why it is not available."""

    def load() -> victims.Victim | str:
        try:
            count = settings.PLANS[context.device, name].images
            found: victims.Victim = getattr(victims, name)(count, context.device)
        except (UserError, ImportError) as error:
            return str(error)
        return found

    loaded: victims.Victim | str = context.remembered(("victim", name), load)
    return loaded
