"""AutoAttack, L-infinity: the parameter-free ensemble (Croce & Hein 2020), by its own package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyautoattack
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from purifiers.attacks._linf import check_count
from purifiers.attacks._losses import finite
from purifiers.core.component import Attack, Target
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.noise import derive_seed
from purifiers.core.numbers import fraction

VERSION = 1
BUDGET = ("apgd_steps", "fab_steps", "targets", "square_queries")
# of the standard version; the rand version costs 2 * 20 * 3 * apgd_steps
PASSES = "3 * apgd_steps * (1 + targets) + 4 * fab_steps * targets + square_queries"

VERSIONS = ("standard", "rand")
# first index of the noise drawn here: no data set has so many images
FIRST_DRAW = 1 << 40


class Autoattack(Attack):
    """APGD-CE, APGD-T, FAB-T and Square (standard), or APGD-CE and APGD-DLR with EOT (rand).

    An image that no member breaks comes back unchanged, as does one that was misclassified.
    The package draws its random numbers for a whole batch at once, so an image's result depends
    on its batch mates (``batch_dependent``). Every query of a random target gets fresh noise.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        version: ``"standard"``, or ``"rand"`` for random defences (20 draws per gradient).
        apgd_steps: iterations of each APGD run.
        fab_steps: iterations of each FAB run.
        targets: target classes of APGD-T and FAB-T, at most the number of classes minus one.
        square_queries: queries of the Square attack.

    Defaults: the paper's and ``fra31/auto-attack``'s (100, 100, 9, 5000); eps 8/255 as in its
    CIFAR-10 tables. Anything less is not AutoAttack and must be reported as a reduced budget.
    """

    batch_dependent = True

    def __init__(
        self,
        *,
        eps: float | str = "8/255",
        version: str = "standard",
        apgd_steps: int = 100,
        fab_steps: int = 100,
        targets: int = 9,
        square_queries: int = 5000,
    ) -> None:
        if version not in VERSIONS:
            hint = did_you_mean(version, VERSIONS)
            raise UserError(
                f"autoattack: version is {version!r}, choose one of {', '.join(VERSIONS)}{hint}"
            )
        check_count(
            "autoattack",
            apgd_steps=apgd_steps,
            fab_steps=fab_steps,
            targets=targets,
            square_queries=square_queries,
        )
        self.eps = fraction(eps)
        self.version = version
        self.apgd_steps = apgd_steps
        self.fab_steps = fab_steps
        self.targets = targets
        self.square_queries = square_queries

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: fewer than 4 classes, for which the targeted DLR loss does not exist.
        """
        if not len(images):
            return images.clone()
        model = _model(target)
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        if classes < 4:
            raise UserError(f"autoattack: {classes} classes, but its DLR loss needs at least 4")
        first = int(indices[0])
        with _global_state_restored():
            suite = self._suite(model, images.device, derive_seed(seed, "autoattack", first))
            suite.fab.n_target_classes = min(self.targets, classes - 1)
            suite.apgd_targeted.n_target_classes = min(self.targets, classes - 1)
            adversarial, _ = suite.run_standard_evaluation(images, labels, batch_size=len(images))
        return adversarial

    def _suite(
        self, model: Callable[[Tensor], Tensor], device: torch.device, seed: int
    ) -> pyautoattack.AutoAttack:
        suite = pyautoattack.AutoAttack(
            model, eps=self.eps, norm="Linf", seed=seed, version=self.version, device=device
        )
        # APGD derives its checkpoints from the iterations when it is made
        common: dict[str, Any] = {
            "n_iter": self.apgd_steps,
            "norm": "Linf",
            "n_restarts": 1,
            "eps": self.eps,
            "seed": seed,
            "device": device,
            "logger": suite.logger,
        }
        suite.apgd = APGDAttack(model, eot_iter=suite.apgd.eot_iter, **common)
        suite.apgd_targeted = APGDAttack_targeted(model, **common)
        suite.fab.n_iter = self.fab_steps
        suite.square.n_queries = self.square_queries
        return suite


class _InputOnly(torch.autograd.Function):
    """Logits whose backward reaches the images and never a parameter's ``grad``."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, query: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            logits = query(leaf)
        ctx.pair = leaf, logits
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        leaf, logits = ctx.pair
        (gradient,) = torch.autograd.grad(logits, leaf, cotangents[0])
        return gradient, None


def _model(target: Target) -> Callable[[Tensor], Tensor]:
    """The target as the package wants it: images to logits, without indices."""
    drawn = FIRST_DRAW

    def query(images: Tensor) -> Tensor:
        nonlocal drawn
        rows = torch.arange(drawn, drawn + len(images))
        drawn += len(images)
        return finite(target(images, rows))

    def model(images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return _InputOnly.apply(images, query)
        with torch.no_grad():
            return query(images).clone()  # Square writes into the logits it gets

    return model


@contextmanager
def _global_state_restored() -> Iterator[None]:
    """The package seeds torch's global generators and replaces the interpreter's trace function."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        sys.settrace(trace)
