"""Speed of AdvAE's training compared with ports of the paper's loop, on the same images and steps.

Two ports use the same initial weights, batches, random starts and optimizer:

- the plain loop: the layers as the paper lists them, and a backward pass for each step of PGD, with
  gradients of all trainable parameters;
- the careful loop: the same with a frozen classifier, and gradients of the images alone in PGD.

The suite also prepares the classifier, fuses BatchNorm into the convolutions during the attack,
pools before it rectifies, and never stores the upsampled images. Where bfloat16 is available,
another row computes the training examples in it. On a GPU the last row compiles auto-encoder and
classifier.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks.pgd import Pgd
from purifiers.classifiers.advae_x import AdvaeX
from purifiers.core.component import frozen
from purifiers.core.data import data_root
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import to_float
from purifiers.datasets.mnist import Mnist
from purifiers.methods.adv_ae import AdvAe
from purifiers.report.attack_timing import SUITE
from purifiers.timing.plain_training import Case, PlainAutoencoder, plain_loss
from purifiers.timing.rounds import Alternated, has_bfloat16, machine
from purifiers.training.natural import Natural

SHAPE = (1, 28, 28)
LOW, COMPILED = f"{SUITE}, bfloat16", f"{SUITE}, compiled"
SUITES: dict[str, dict[str, Any]] = {
    SUITE: {},
    LOW: {"attack_precision": "bfloat16"},
    COMPILED: {"compiled": True},
}
ROUNDS = 3  # one takes a minute or two
LEAST = 2.0
"""Required speed-up over the plain loop, on a processor, in float32."""
JUDGED = 256
"""Test images on which the robust accuracy of a training is measured, under PGD-10."""
APART = 5.0
"""Tolerated difference, in points, between trainings that differ in rounding only; our choice."""


CASES = {
    "paper": Case(96, 32, 0.3, 40, 0.01, 0.001),  # section 4.1, three batches
    "desk": Case(3072, 64, 0.1, 4, 0.05, 0.004, judged=True),  # our choice
}


@functools.cache
def mnist(device: str) -> tuple[Any, Any, AdvaeX] | UserError:
    """Training images, labels, and X after one pass over 4000 others; or the error without data."""
    try:
        pixels, labels = Mnist().load("train", data_root())
    except UserError as error:
        return error
    torch.manual_seed(0)
    classifier = AdvaeX(SHAPE, 10).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    images, targets = to_float(pixels[-4000:], device), torch.from_numpy(labels[-4000:]).to(device)
    for rows in torch.randperm(4000).split(64):
        optimizer.zero_grad()
        Natural().loss(classifier, images[rows], targets[rows], rows, 0).backward()
        optimizer.step()
    classifier.eval().zero_grad()
    return pixels, labels, classifier


@pytest.mark.parametrize("name", CASES)
def test_adv_ae(
    name: str, device: str, benchmark: Any, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """The same losses and accuracies, and at least ``LEAST`` times as fast as the plain loop."""
    loaded = mnist(device)
    if isinstance(loaded, UserError):
        pytest.skip(str(loaded))
    pixels, labels, trained = loaded
    case = CASES[name]
    case = replace(case, images=pytestconfig.getoption("--images") or case.images)
    still = frozen(copy.deepcopy(trained))

    def method(**overrides: Any) -> AdvAe:
        torch.manual_seed(0)
        built = AdvAe(
            **{"eps": case.eps, "steps": case.steps, "step_size": case.step_size},
            **{"epochs": 1, "batch_size": case.batch_size, "learning_rate": case.learning_rate},
            **{"validation": 0.0, "early_stopping": 0, "schedule": "one_cycle"},
            norm_momentum=0.1,
            **overrides,
        )
        built.bind(still, SHAPE)
        built.fit_on([still], case.images)
        return built.to(device)

    def train(module: nn.Module, loss: Callable[..., Tensor], recipe: Recipe) -> list[float]:
        """Train a module; return the losses of the batches."""
        losses: list[float] = []

        def recorded(*batch: Any) -> Tensor:
            losses.append(0.0)
            value = loss(*batch)
            losses[-1] = float(value.detach())
            return value

        used = slice(case.images)
        recipe = replace(recipe, checkpoint_seconds=float("inf"))
        path = tmp_path / "checkpoint"
        module.train()
        fit(module, recorded, pixels[used], labels[used], recipe, 0, path, name, name, device)
        return losses

    def run(row: str) -> tuple[nn.Module, list[float]]:
        built = method(**SUITES.get(row, {}))
        if row in SUITES:
            return built, train(built, built.fit_loss, built.recipe)
        careful = row == "careful loop"
        port = PlainAutoencoder(built).to(device)
        loss = plain_loss(port, still if careful else trained, case, careful)
        return port, train(port, loss, built.recipe)

    rows = ["plain loop", "careful loop", SUITE]
    if has_bfloat16(device):
        rows.append(LOW)
    if device == "cuda":
        rows.append(COMPILED)
    outcomes: dict[str, tuple[nn.Module, list[float]]] = {}

    def kept(row: str) -> None:
        outcomes.setdefault(row, run(row))

    one_round = Alternated({row: functools.partial(kept, row) for row in rows}, device)
    count = pytestconfig.getoption("--rounds") or ROUNDS
    benchmark.pedantic(one_round, rounds=count, iterations=1)
    seconds = one_round.seconds

    accuracies = {row: robust_accuracy(outcomes[row][0], still, case, device) for row in rows}
    times = {row: statistics.median(taken) for row, taken in seconds.items()}
    speed_up = times["plain loop"] / times[SUITE]
    benchmark.extra_info.update(
        method="adv_ae",
        case=name,
        n_images=case.images,
        steps=case.steps,
        batch_size=case.batch_size,
        **machine(device),
        seconds=seconds,
        times_faster=speed_up,
        times_faster_than_careful=times["careful loop"] / times[SUITE],
        robust_accuracy=accuracies,
    )
    plain_losses, suite_losses = (outcomes[row][1] for row in ("plain loop", SUITE))
    # the first losses only: later, rounding flips some signs
    assert suite_losses[:3] == pytest.approx(plain_losses[:3], rel=0.01)
    if case.judged:
        difference = max(
            abs(accuracies["plain loop"] - accuracy) for accuracy in accuracies.values()
        )
        assert difference <= APART, f"the accuracies differ by {difference:.1f} points"
    assert device == "cuda" or speed_up > LEAST, f"only {speed_up:.2f} times as fast"


def robust_accuracy(autoencoder: nn.Module, classifier: AdvaeX, case: Case, device: str) -> float:
    """Robust accuracy on ``JUDGED`` test images under white-box PGD-10, in percent."""
    pixels, labels = Mnist().load("test", data_root())
    images, targets = to_float(pixels[:JUDGED], device), torch.from_numpy(labels[:JUDGED])
    frozen(autoencoder)

    def defended(images: Tensor) -> Tensor:
        purify = autoencoder.purify if isinstance(autoencoder, AdvAe) else autoencoder
        return Defence(classifier)(purify(images))

    pgd = Pgd(eps=case.eps, steps=10, step_size=case.eps / 4)
    adversarial = pgd(defended, images, targets.to(device))
    with torch.no_grad():
        return 100.0 * float((defended(adversarial).argmax(1).cpu() == targets).float().mean())
