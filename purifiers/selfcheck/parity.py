"""The same results on the device as on the CPU: attacks, purifiers, trainings and fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.component import Method, build, frozen
from purifiers.core.defence import Defence
from purifiers.core.prepare import Prepared
from purifiers.selfcheck.checks import SKIP, Check, Outcome, passed_if
from purifiers.selfcheck.context import CLASSES, SHAPE, Context, shrunk

MEDIAN = 1e-4
"""Largest median difference of pixels, on the [0, 1] scale. Between an H200 and a CPU it was 0."""
APART = 1
"""Images whose label may differ: a tie between two steps may be broken by rounding."""
LOSS, GRADIENT = 1e-3, 1e-2
"""Largest relative differences of a training's loss and of the norm of its gradient; our choice."""
ATTACK_SIZES = {
    **{"steps": 12, "apgd_steps": 5, "fab_steps": 4, "search_steps": 3, "targets": 2},
    **{"queries": 100, "square_queries": 50, "samples": 32},
}
ATTACK_LENGTHS = {"eps": 0.1, "step_size": 0.025, "learning_rate": 0.1}
"""Parameters with which attacks break digits in few steps; our choice."""
METHOD_SIZES = {
    **{"width": 8, "blocks": 1, "channels": 8, "filters": 8, "mixtures": 2, "scales": 2},
    **{"latent": 16, "steps": 4, "restarts": 2, "iterations": 4, "attack_steps": 2},
    **{"train_steps": 2, "dropout": 0.0, "drop_rate": 0.0, "batch_size": 16},
    **{"rank": 8, "langevin_steps": 2},
}
PURIFIED = 8  # images


def checks(context: Context) -> Iterator[Check]:
    """One check per attack, purifier, training recipe and fit."""
    for name in registry.names("attack"):
        traits = registry.attack_traits(name)
        if not (traits.images_of or traits.files):
            yield Check(name, partial(_attack, context, name), "attacks")
    for name in registry.names("method"):
        yield Check(name, partial(_method, context, name), "purifiers")
    for name in registry.names("training"):
        if not registry.describe("training", name).traits.keeps_weights:
            yield Check(name, partial(_training, context, name), "training steps")
    for name in registry.names("method"):
        if registry.method_traits(name).fit is not None:
            yield Check(name, partial(_fit, context, name), "fit steps")


class Attackable:
    """A prepared classifier with the parts that some attacks use.

    They are a detector, a score and the layers' activations.
    """

    def __init__(self, classifier: nn.Module) -> None:
        self.model = Prepared(classifier)
        self._defence = Defence(classifier)

    def activations(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return self._defence.activations(images, taps)

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images)

    def detector_logit(self, images: Tensor) -> Tensor:
        """High for images of much contrast."""
        return (images - 0.5).square().flatten(1).mean(dim=1)

    def score(self, images: Tensor) -> Tensor:
        """Of a normal density around grey."""
        return 0.5 - images


def _attack(context: Context, name: str) -> Outcome:
    images, labels = context.digits()
    described = registry.describe("attack", name)
    lengths = {n: v for n, v in ATTACK_LENGTHS.items() if n in described.parameters}
    attack = build(
        registry.load("attack", name), **(shrunk(described.parameters, ATTACK_SIZES) | lengths)
    )
    results = []
    for device in ("cpu", context.device):
        target = Attackable(context.on(device))
        results.append(attack(target, images.to(device), labels.to(device), seed=1).cpu())
    clean = context.correct(images, labels)
    outcome = compared(context, results[0], results[1], labels)
    left = outcome.numbers["counts"][1]
    if not described.traits.model_free and left >= clean:
        return passed_if(False, f"breaks none of {clean} images", **outcome.numbers)
    return outcome


def compared(context: Context, expected: Tensor, found: Tensor, labels: Tensor) -> Outcome:
    """Compare images of the CPU and of the device: correct labels and pixels."""
    counts = [context.correct(images, labels) for images in (expected, found)]
    difference = float((expected - found).abs().median())
    reason = (
        f"{counts[0]} (cpu) and {counts[1]} ({context.device}) of {len(labels)} correct, "
        f"median difference {difference:.1g}"
    )
    same = abs(counts[0] - counts[1]) <= APART and difference <= MEDIAN
    return passed_if(same, reason, counts=counts, difference=difference)


def made(context: Context, name: str) -> tuple[Method, nn.Module] | None:
    """A small untrained method and the classifier that it is bound to; None: none here fits."""
    described = registry.describe("method", name)
    classifier = context.on("cpu")
    traits = registry.method_traits(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if traits.trained_with is not None:
            if name != "soap":
                return None
            cls = registry.load("classifier", "soap_resnet")
            classifier = frozen(build(cls, SHAPE, CLASSES))
        sizes = shrunk(described.parameters, METHOD_SIZES)
        method: Method = build(registry.load("method", name), **sizes)
        method.bind(classifier, SHAPE)
    return method, classifier


def _method(context: Context, name: str) -> Outcome:
    pair = made(context, name)
    if pair is None:
        return Outcome(SKIP, "needs a classifier of its own training")
    images, labels = context.digits(PURIFIED)
    results = []
    for device in ("cpu", context.device):
        method: Any = frozen(copy.deepcopy(pair[0])).to(device)
        results.append(method.purify(images.to(device), 1).detach().cpu())
    return compared(context, results[0], results[1], labels)


def _training(context: Context, name: str) -> Outcome:
    described = registry.describe("training", name)
    training: Any = build(
        registry.load("training", name), **shrunk(described.parameters, {"steps": 3, "rank": 8})
    )
    images, labels = context.digits(PURIFIED)
    results = []
    for device in ("cpu", context.device):
        network = context.on(device).train().requires_grad_(True)
        torch.manual_seed(1)
        # wrong labels, so that a trained network has gradients
        truth = ((labels + 1) % CLASSES).to(device)
        loss = training.loss(network, images.to(device), truth, torch.arange(len(images)), 1)
        results.append(_loss_and_norm(loss, network))
    return same_step(results, context.device)


def _fit(context: Context, name: str) -> Outcome:
    pair = made(context, name)
    if pair is None:
        return Outcome(SKIP, "needs a classifier of its own training")
    images, labels = context.digits(PURIFIED)
    results = []
    for device in ("cpu", context.device):
        method: Any = copy.deepcopy(pair[0]).to(device)
        method.fit_on([copy.deepcopy(pair[1]).to(device)], len(images))
        torch.manual_seed(1)
        rows = torch.arange(len(images))
        loss = method.train().fit_loss(images.to(device), labels.to(device), rows, 1)
        results.append(_loss_and_norm(loss, method))
    return same_step(results, context.device)


def _loss_and_norm(loss: Tensor, module: nn.Module) -> tuple[float, float]:
    """Value of a loss, and the norm of its gradient by all parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())


def same_step(results: list[tuple[float, float]], device: str) -> Outcome:
    """Compare loss and gradient norm of the CPU and of the device."""
    (loss, norm), (other_loss, other_norm) = results
    apart = abs(loss - other_loss) / max(abs(loss), 1e-6)
    norm_apart = abs(norm - other_norm) / max(norm, 1e-6)
    good = apart <= LOSS and norm_apart <= GRADIENT and norm > 0
    reason = (
        f"loss {loss:.4g} (cpu) and {other_loss:.4g} ({device}), gradient norm {norm:.3g} and "
        f"{other_norm:.3g}"
    )
    return passed_if(good, reason, difference=max(apart, norm_apart))
