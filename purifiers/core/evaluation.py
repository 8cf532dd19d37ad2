"""Attack, purify and score one batch: the steps that the stages and :func:`purifiers.audit` share.

The seeds of the attack, of the attacker's simulated defence and of the defender differ, because the
attacker does not know the defender's random draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core.component import Attack, Method, equipped
from purifiers.core.defence import Defence
from purifiers.core.finite import finite
from purifiers.core.images import check_images
from purifiers.core.logits import queried
from purifiers.core.modes import types_explained
from purifiers.core.noise import derive_seed
from purifiers.core.prepare import Prepared


def attacked_defence(
    classifier: nn.Module,
    methods: Sequence[Method],
    seed: int,
    *,
    gradient: str = "exact",
    eot_samples: int = 1,
    eot_combine: str = "mean",
    auxiliary: Method | None = None,
    precision: str = "float32",
) -> Defence:
    """The defence as an attacker sees it: prepared, and with random draws of the attacker's own.

    Args:
        classifier: the frozen classifier.
        methods: the purifiers that the attacker knows; none if the attack is oblivious.
        seed: random seed of the run.
        gradient, eot_samples, eot_combine, auxiliary: as in :class:`Defence`.
        precision: as in :class:`Prepared`.
    """
    return Defence(
        classifier,
        methods,
        gradient,
        derive_seed(seed, "attacker"),
        eot_samples,
        eot_combine,
        auxiliary,
        Prepared(equipped(classifier, methods), precision),
    )


def attacked(
    attack: Attack,
    defence: Defence | None,
    images: Tensor,
    labels: Tensor,
    seed: int,
    indices: Tensor,
) -> Tensor:
    """Adversarial images, float32 (n, C, H, W) in [0, 1].

    Args:
        defence: from :func:`attacked_defence`; None for an attack without a model.
        images, labels, indices: of one batch; float32 (n, C, H, W), int64 (n,) and (n,).
        seed: random seed of the run.
    """
    model = _no_model if defence is None else defence
    return attack(model, images, labels, derive_seed(seed, "attack"), indices)


def _no_model(images: Tensor) -> Tensor:
    raise RuntimeError("an attack that declares model_free=True queried a model")


def unprepared(defence: Defence | None) -> str:
    """Why the original classifier was attacked instead of a prepared one; empty if it was not."""
    return "" if defence is None else getattr(defence.network, "fallback", "")


def defender_seed(seed: int, draw: int = 0) -> int:
    """Seed of the defender's random draw of a number; ``seed`` is the run's."""
    return derive_seed(seed, "defender", *((draw,) if draw else ()))


def purified(method: Method, images: Tensor, seed: int, indices: Tensor, draw: int = 0) -> Tensor:
    """The defender's purified images, float32 (n, C, H, W) in [0, 1], without gradients.

    Args:
        seed: random seed of the run.
        draw: number of the defender's random draw; a single draw is draw 0.

    Raises:
        UserError: the method's output is not finite, or leaves [0, 1].
    """
    with torch.no_grad():
        images = method.purify(images, defender_seed(seed, draw), indices)
    check_images(images, f"purified by {type(method).__name__}")
    return images


def states(
    method: Method, images: Tensor, seed: int, indices: Tensor, draw: int = 0
) -> list[Tensor]:
    """The images after each step of :func:`purified`, each float32 (n, C, H, W) in [0, 1].

    Args:
        seed, draw: as of :func:`purified`.

    Raises:
        UserError: an image is not finite, or leaves [0, 1].
    """
    with torch.no_grad():
        steps = method.states(images, defender_seed(seed, draw), indices)
    for step in steps:
        check_images(step, f"a step of {type(method).__name__}")
    return steps


@dataclass(frozen=True)
class Scored:
    """Predictions (int64) and distances to the clean images (float32) of a batch, all (n,)."""

    prediction: Tensor
    linf: Tensor
    l2: Tensor


def scored(classifier: Callable[[Tensor], Any], images: Tensor, clean: Tensor) -> Scored:
    """Classify images and measure their distances to the clean images.

    Args:
        classifier: the original classifier, never a prepared one.
        images: purified images, float32 (n, C, H, W) in [0, 1].
        clean: the clean images, on any device.

    Raises:
        RuntimeError: the logits are not finite.
    """
    return Scored(predicted(classifier, images), *distances(images.cpu(), clean.cpu()))


def predicted(classifier: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Predictions (n,) on the CPU, without gradients.

    Raises:
        RuntimeError: the logits are not finite.
    """
    return finite_logits(classifier, images).argmax(1).cpu()


def finite_logits(classifier: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Logits (n, classes), without gradients.

    Raises:
        UserError: see :func:`purifiers.core.modes.types_explained`.
        RuntimeError: the logits are not finite.
    """
    with torch.no_grad(), types_explained(classifier, "scoring"):
        return finite(queried(classifier, images))


def distances(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """L-infinity and L2 distance of each image to its clean image, (n,) each."""
    difference = (images - clean).flatten(1)
    return difference.abs().amax(1), difference.norm(dim=1)
