"""Seconds of purifications and training steps, and of plain loops with the same work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.component import build, frozen
from purifiers.core.registry import load
from purifiers.methods.adv_ae import AdvAe
from purifiers.methods.aid import Aid
from purifiers.methods.defense_gan import DefenseGan
from purifiers.report.attack_timing import SUITE
from purifiers.selfcheck.checks import Check, Outcome, passed_if
from purifiers.selfcheck.context import CLASSES, SHAPE, Context
from purifiers.timing.plain_purification import beginnings, plain, repeated, sequential
from purifiers.timing.plain_training import Case, PlainAutoencoder, plain_loss
from purifiers.timing.rounds import Alternated, machine

PLAIN = "plain loop"
LIMIT = 1.05
"""Largest time of the suite over the plain loop; our choice."""
GREY = (1, 28, 28)
STEPS, EPS = 10, 0.1
Rows = dict[str, Callable[[], Any]]


def checks(context: Context) -> Iterator[Check]:
    """One check per loop."""
    loops: dict[str, Callable[[Context], tuple[str, int, Rows]]] = {
        "defense_gan": _defense_gan,
        "aid": _aid,
        "adv_ae": _adv_ae,
        "natural": partial(_training, "natural"),
        "madry": partial(_training, "madry"),
    }
    for name, rows in loops.items():
        yield Check(f"{name} over its plain loop", partial(_loop, context, name, rows))


def _loop(
    context: Context, name: str, rows_of: Callable[[Context], tuple[str, int, Rows]]
) -> Outcome:
    task, count, rows = rows_of(context)
    for run in rows.values():
        run()  # warms up
    one_round = Alternated(rows, context.device)
    for _ in range(context.size.rounds):
        one_round()
    seconds = one_round.seconds
    key = "purifier" if task == "purification" else "method"
    entry = {key: name, "case": "selfcheck", "n_images": count, "seconds": seconds}
    context.measured.setdefault("loops", []).append({**machine(context.device), **entry})
    return judged({row: median(times) for row, times in seconds.items()}, context.size.slack)


def judged(seconds: dict[str, float], slack: float) -> Outcome:
    """Compare the suite with the plain loop."""
    ratio = seconds[SUITE] / seconds[PLAIN]
    reason = f"{seconds[SUITE]:.3g} s, {ratio:.2f} of the plain loop (limit {LIMIT * slack:.2f})"
    return passed_if(ratio <= LIMIT * slack, reason, over_plain=ratio)


def _defense_gan(context: Context) -> tuple[str, int, Rows]:
    width, steps, count = (64, 50, 32) if context.size.slack == 1.0 else (16, 10, 4)
    torch.manual_seed(0)
    method = DefenseGan(width=width, latent=32, steps=steps, restarts=10)
    method.bind(None, GREY)
    frozen(method.to(context.device))
    network, images = plain(method), torch.rand(count, *GREY, device=context.device)
    return (
        "purification",
        count,
        {
            PLAIN: lambda: sequential(method, network, images),
            SUITE: lambda: method.purify(images, 0),
        },
    )


def _aid(context: Context) -> tuple[str, int, Rows]:
    classifier: Any = context.on(context.device)
    torch.manual_seed(0)
    method = Aid(variant="upstream", width=64)
    method.bind(classifier, SHAPE)
    frozen(method.to(context.device))
    parts = beginnings(classifier)
    images = context.digits()[0].to(context.device)
    return (
        "purification",
        len(images),
        {
            PLAIN: lambda: repeated(method, parts, images),
            SUITE: lambda: method.purify(images),
        },
    )


def _adv_ae(context: Context) -> tuple[str, int, Rows]:
    case = Case(32, 32, EPS, STEPS, EPS / 4, 0.001)
    classifier = frozen(build(load("classifier", "advae_x"), GREY, CLASSES)).to(context.device)
    torch.manual_seed(0)
    method: Any = AdvAe(eps=EPS, steps=STEPS, step_size=EPS / 4, norm_momentum=0.1)
    method.bind(classifier, GREY)
    method.fit_on([classifier], case.images)
    method.to(context.device)
    port = PlainAutoencoder(method).to(context.device)
    trainable = copy.deepcopy(classifier).requires_grad_(True)
    loss = plain_loss(port, trainable, case, careful=False)
    images = torch.rand(case.images, *GREY, device=context.device)
    labels = torch.randint(CLASSES, (case.images,)).to(context.device)
    rows = torch.arange(case.images)
    return (
        "training",
        case.images,
        {
            PLAIN: _step(port, lambda: loss(images, labels, rows, 0)),
            SUITE: _step(method.train(), lambda: method.fit_loss(images, labels, rows, 0)),
        },
    )


def _training(name: str, context: Context) -> tuple[str, int, Rows]:
    sizes = {"eps": EPS, "steps": STEPS, "step_size": EPS / 4} if name == "madry" else {}
    training = build(load("training", name), **sizes)
    images, labels = (part.to(context.device) for part in context.digits())
    rows = torch.arange(len(images))
    networks = [context.on(context.device).train().requires_grad_(True) for _ in range(2)]

    def loss(network: nn.Module) -> Tensor:
        adversarial = images
        for _ in range(STEPS if name == "madry" else 0):
            adversarial.requires_grad_(True)
            functional.cross_entropy(network(adversarial), labels).backward()
            assert adversarial.grad is not None
            moved = adversarial.detach() + EPS / 4 * adversarial.grad.sign()
            adversarial = (images + (moved - images).clamp(-EPS, EPS)).clamp(0.0, 1.0).detach()
        network.zero_grad()
        return functional.cross_entropy(network(adversarial.detach()), labels)

    return (
        "training",
        len(images),
        {
            PLAIN: _step(networks[0], lambda: loss(networks[0])),
            SUITE: _step(networks[1], lambda: training.loss(networks[1], images, labels, rows, 0)),
        },
    )


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of SGD."""
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step
