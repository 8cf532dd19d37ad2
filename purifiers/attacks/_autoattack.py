"""The adapter around the AutoAttack package (Croce & Hein 2020), for either norm."""

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
from purifiers.core import noise
from purifiers.core.component import Attack
from purifiers.core.errors import UserError, check_choice
from purifiers.core.target import FIRST_DRAW, Target, finite
from purifiers.core.traits import AttackTraits

VERSIONS = ("standard", "rand")
# what the package calls our norms
NORMS = {"linf": "Linf", "l2": "L2"}


class Ensemble(Attack):
    """The package's attacks one after the other, each on the images that are not broken yet.

    Args:
        owner: the attack's name, for messages.
        size: the ball's radius, in the norm of the traits.
        version, apgd_steps, fab_steps, targets, square_queries: as in
            :class:`purifiers.attacks.autoattack.Autoattack`.
    """

    traits = AttackTraits(
        version=1,
        budget=("apgd_steps", "fab_steps", "targets", "square_queries"),
        # the standard version; the rand version costs 2 * 20 * 3 * apgd_steps
        passes="3 * apgd_steps * (1 + targets) + 4 * fab_steps * targets + square_queries",
        stops_at_first_success=True,  # the package keeps the first draw that breaks an image
        float32_only=True,  # the package decides success by the logits it receives
        batch_dependent=True,
    )

    def __init__(
        self,
        owner: str,
        size: float,
        *,
        version: str = "standard",
        apgd_steps: int = 100,
        fab_steps: int = 100,
        targets: int = 9,
        square_queries: int = 5000,
    ) -> None:
        check_choice(f"{owner}: version", version, VERSIONS)
        check_count(
            owner,
            apgd_steps=apgd_steps,
            fab_steps=fab_steps,
            targets=targets,
            square_queries=square_queries,
        )
        self._owner = owner
        self._size = size
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
        images = images.contiguous()  # the package flattens with `view`
        # the version for random defences takes the mean of single draws by itself
        query = target.draw if self.version == "rand" else target
        model = _model(query, indices, target.stochastic)
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        if classes < 4:
            raise UserError(f"{self._owner}: {classes} classes, but its DLR loss needs at least 4")
        package_seed = noise.derive_seed(seed, "autoattack", int(indices[0]))
        with _global_state_restored():
            suite = self._suite(model, images.device, package_seed, target.eot_samples)
            suite.fab.n_target_classes = min(self.targets, classes - 1)
            suite.apgd_targeted.n_target_classes = min(self.targets, classes - 1)
            adversarial, _ = suite.run_standard_evaluation(images, labels, batch_size=len(images))
        return adversarial

    def _suite(
        self, model: Callable[[Tensor], Tensor], device: torch.device, seed: int, draws: int
    ) -> pyautoattack.AutoAttack:
        norm = NORMS[self.traits.norm]
        suite = pyautoattack.AutoAttack(
            model, eps=self._size, norm=norm, seed=seed, version=self.version, device=device
        )
        # APGD derives its checkpoints from the iterations when it is made
        common: dict[str, Any] = {
            "n_iter": self.apgd_steps,
            "norm": norm,
            "n_restarts": 1,
            "eps": self._size,
            "seed": seed,
            "device": device,
            "logger": suite.logger,
        }
        own = suite.apgd.eot_iter
        eot_iter = draws if self.version == "rand" and draws > 1 else own
        suite.apgd = APGDAttack(model, eot_iter=eot_iter, **common)
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
        return gradient.contiguous(), None


def _model(
    target: Callable[[Tensor, Tensor], Tensor], indices: Tensor, counts: bool
) -> Callable[[Tensor], Tensor]:
    """The target as the package wants it: images to logits, without indices.

    The package does not tell which images it asks about. So every query is a new index, unless
    the target ``counts`` its queries and draws anew at each by itself.
    """
    drawn = FIRST_DRAW

    def query(images: Tensor) -> Tensor:
        nonlocal drawn
        if counts:
            return finite(target(images, indices[: len(images)]))
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
