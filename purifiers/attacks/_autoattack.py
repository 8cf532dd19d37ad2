"""Adapter for the AutoAttack package (Croce & Hein 2020), in the L-infinity or the L2 norm."""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyautoattack
import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from purifiers.core import noise
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.ranges import Count
from purifiers.core.target import FIRST_DRAW, Target
from purifiers.core.traits import AttackTraits, Note

# our norm to the package's name for it
NORMS = {"linf": "Linf", "l2": "L2"}


class Ensemble(Attack):
    """Run the package's attacks in sequence, each on the images that are still unbroken.

    Args:
        owner: name of the attack, for error messages.
        size: radius of the ball, in the norm of the traits.
        version, apgd_steps, fab_steps, targets, square_queries, lucky_draws: see
            :class:`purifiers.attacks.autoattack.Autoattack`.
    """

    traits = AttackTraits(
        version=1,
        budget=("apgd_steps", "fab_steps", "targets", "square_queries"),
        passes=(
            "mean(version, rand=6 * apgd_steps,"
            " standard=3 * apgd_steps * (1 + targets) + 4 * fab_steps * targets + square_queries)"
        ),
        stops_at_first_success=True,  # the package keeps the first draw that breaks an image
        float32_only=True,  # the package judges success by the logits of the attacked network
        batch_dependent=True,  # the package draws random numbers for the whole batch at once
        joined_later=("lucky_draws",),
        remarks=(
            Note(
                when={"lucky_draws": (True,)},
                text=(
                    "an image that one random draw loses is no longer attacked, and scored as it "
                    "was: the number is too high"
                ),
            ),
        ),
    )

    def __init__(
        self,
        owner: str,
        size: float,
        *,
        version: Literal["standard", "rand"] = "standard",
        apgd_steps: Count = 100,
        fab_steps: Count = 100,
        targets: Count = 9,
        square_queries: Count = 5000,
        lucky_draws: bool = False,
    ) -> None:
        self._owner = owner
        self._size = size
        self.version = version
        self.apgd_steps = apgd_steps
        self.fab_steps = fab_steps
        self.targets = targets
        self.square_queries = square_queries
        self.lucky_draws = lucky_draws

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1].

        Raises:
            UserError: fewer than 4 classes; the targeted DLR loss is undefined there.
        """
        if not len(images):
            return images.clone()
        images = images.contiguous()  # the package flattens with `view`
        fresh = itertools.count(FIRST_DRAW)
        # the rand version averages single draws itself
        model, judge = (
            _model(one.draw if self.version == "rand" else one, indices, one.stochastic, fresh)
            for one in (target, target.judge())
        )
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        if classes < 4:
            raise UserError(
                f"{self._owner}: {classes} classes, but its DLR loss needs at least 4; "
                "use an attack without it, such as pgd"
            )
        package_seed = noise.derive_seed(seed, "autoattack", int(indices[0]))
        with _global_state_restored():
            suite = self._suite(model, images.device, package_seed, target.eot_samples)
            suite.model = judge  # decides which images are broken; the attacks keep the other
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
        suite.logger = _collecting(self._flag)
        # rebuilt, because APGD derives its checkpoints from n_iter in its constructor
        common: dict[str, Any] = {
            "n_iter": self.apgd_steps,
            "norm": norm,
            "n_restarts": 1,
            "eps": self._size,
            "seed": seed,
            "device": device,
            "logger": suite.logger,
        }
        default_draws = suite.apgd.eot_iter
        eot_iter = draws if self.version == "rand" and draws > 1 else default_draws
        suite.apgd = APGDAttack(model, eot_iter=eot_iter, **common)
        suite.apgd_targeted = APGDAttack_targeted(model, **common)
        suite.fab.n_iter = self.fab_steps
        suite.square.n_queries = self.square_queries
        return suite

    def _flag(self, text: str) -> None:
        """Keep one of the package's warnings, once, without its reference to a file."""
        sentence = " ".join(text.split(" See ")[0].split()).rstrip("!.")
        # a number would make one warning of each batch
        self.flags = tuple(
            dict.fromkeys((*self.flags, re.sub(r"\b\d+ points", "points", sentence)))
        )


def _collecting(keep: Callable[[str], None]) -> logging.Logger:
    """A logger that passes warnings to ``keep`` and drops the rest."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            keep(record.getMessage())

    logger = logging.Logger("auto-attack", logging.WARNING)
    logger.addHandler(Collector())
    return logger


class _InputOnly(torch.autograd.Function):
    """Logits whose backward pass differentiates the images only, never the parameters."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, query: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            logits = query(leaf)
        ctx.graph = leaf, logits
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        leaf, logits = ctx.graph
        (gradient,) = torch.autograd.grad(logits, leaf, cotangents[0])
        return gradient.contiguous(), None


def _model(
    target: Callable[[Tensor, Tensor], Tensor],
    indices: Tensor,
    counts: bool,
    fresh: Iterator[int],
) -> Callable[[Tensor], Tensor]:
    """Wrap the target for the package: images to logits, without indices.

    The package does not report which images a query contains. Each query therefore gets new
    indices.

    Args:
        counts: the target draws fresh noise at every query by itself; indices are then reused.
        fresh: indices that no query had before.
    """

    def query(images: Tensor) -> Tensor:
        if counts:
            return finite(target(images, indices[: len(images)]))
        rows = torch.tensor(list(itertools.islice(fresh, len(images))), dtype=torch.int64)
        return finite(target(images, rows))

    def model(images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return _InputOnly.apply(images, query)
        with torch.no_grad():
            return query(images).clone()  # Square modifies the logits in place

    return model


@contextmanager
def _global_state_restored() -> Iterator[None]:
    """Restore torch's random generators and the trace function; the package changes both.

    Its count of calls that differentiate starts at 0: the package never resets it, so that it would
    call every model after a dynamic defence one, too.
    """
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        sys.settrace(trace)
