"""Detection of catastrophic overfitting in single-step adversarial training (Wong et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifiers.attacks.pgd import Pgd
from purifiers.core.component import Classifier

PGD_STEPS = 10
"""Steps of eps / 4 of the attack that the single step is compared with; our choice."""
COLLAPSED = 0.5
"""A training has collapsed if PGD leaves less than this fraction of what the single step leaves.

Wong et al. (2020, section 5.1) observe a sudden drop to 0 %; without one, the fraction is above .8.
"""

FALL = 0.2
"""A training ends if accuracy under PGD falls by more than this from one epoch to the next
(`locuslab/fast_adversarial`, `--early-stop`)."""


def compared(
    classifier: Classifier,
    adversarial: Tensor,
    eps: float,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    seed: int,
) -> dict[str, float]:
    """Accuracy under the training's single step and under PGD, both in [0, 1].

    Args:
        classifier: in evaluation mode.
        adversarial: images after the single step, float32 (n, C, H, W).
        eps: L-infinity radius of both attacks.
        images, labels, indices: clean images (n, C, H, W), int64 (n,) and int64 (n,).
        seed: of PGD's random start.
    """
    pgd = Pgd(eps=eps, steps=PGD_STEPS, step_size=eps / 4)
    attacked = {
        "single_step": adversarial,
        "pgd": pgd(classifier, images, labels, seed, indices),
    }
    with torch.no_grad():
        right = {n: classifier(x).argmax(1) == labels for n, x in attacked.items()}
    return {name: float(value.float().mean()) for name, value in right.items()}


def fell(watched: Sequence[dict[str, float]]) -> bool:
    """Whether accuracy under PGD fell by more than ``FALL`` in the last epoch.

    Args:
        watched: results of :func:`compared` after each epoch.
    """
    return len(watched) > 1 and watched[-2]["pgd"] - watched[-1]["pgd"] > FALL


def collapse_note(watched: Sequence[dict[str, float]]) -> str:
    """A sentence on the last epoch if the training has collapsed by then, else "".

    Args:
        watched: results of :func:`compared` after each epoch.
    """
    if not watched or watched[-1]["pgd"] >= COLLAPSED * watched[-1]["single_step"]:
        return ""
    last = watched[-1]
    return (
        f"catastrophic overfitting: {100 * last['single_step']:.0f} % of training images are "
        f"classified correctly after the single step of the training, {100 * last['pgd']:.0f} % "
        f"under PGD-{PGD_STEPS}"
    )
