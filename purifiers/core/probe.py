"""Diagnostics of an attacked model that reveal a weak attack, such as zero gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.defence import Defence
from purifiers.core.target import Target, as_target

PROBED_IMAGES = 64
"""Images to probe, the first of a set; our choice: an eighth of a set of 512 costs little."""

SUM_TOLERANCE = 1e-3
"""Largest distance to 1 of the sum of an image's probabilities; our choice, as bfloat16 rounds."""


def probe(
    defence: Defence, clean: Tensor, adversarial: Tensor, labels: Tensor, indices: Tensor
) -> dict[str, int | float | None]:
    """Statistics of input gradients at the clean images, and of the loss before and after.

    Args:
        defence: the defence with the attacker's gradient and draws.
        clean, adversarial: float32 (n, C, H, W) in [0, 1].
        labels, indices: int64 (n,).

    Returns:
        A dict with

        - ``images``: n;
        - ``correct``: number of images that are classified correctly before the attack;
        - ``moved``: number of these that the attack changed (some attacks return the clean image
          if they do not succeed);
        - ``probabilities``: number of images at which the model returns probabilities in place of
          logits;
        - ``zero_gradient``, ``nonfinite_gradient``: number of images with such a gradient, None if
          the attacker takes no gradients;
        - ``loss_clean``, ``loss_adversarial``: mean cross entropy;
        - ``loss_rose``: number of images whose cross entropy increased.
    """
    target = as_target(defence)
    tensors = (clean, adversarial, labels, indices)
    rows = max(PROBED_IMAGES // defence.eot_samples, 1)  # per query, to bound the memory
    with_gradient = defence.gradient != "none"
    parts = [
        _probe(target, with_gradient, *part)
        for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    ]
    correct, shares, zero, nonfinite, before, after = (
        torch.cat(part) for part in zip(*parts, strict=True)
    )
    changed = (adversarial != clean).flatten(1).any(dim=1)
    return {
        "images": len(clean),
        "correct": int(correct.sum()),
        "moved": int((correct & changed).sum()),
        "probabilities": int(shares.sum()),
        "zero_gradient": int(zero.sum()) if with_gradient else None,
        "nonfinite_gradient": int(nonfinite.sum()) if with_gradient else None,
        "loss_clean": float(before.mean()),
        "loss_adversarial": float(after.mean()),
        "loss_rose": int((after > before).sum()),
    }


def _probe(
    target: Target,
    with_gradient: bool,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    indices: Tensor,
) -> tuple[Tensor, ...]:
    """Per image (n,): correct, probabilities, gradient zero, not finite, loss before and after."""

    def losses(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    leaf, gradient = clean.detach().requires_grad_(with_gradient), torch.zeros_like(clean)
    with torch.set_grad_enabled(with_gradient):
        logits = target(leaf, indices)
        before = losses(logits)
        if with_gradient:
            (gradient,) = torch.autograd.grad(before.sum(), leaf)
    with torch.no_grad():
        after = losses(target(adversarial, indices))
    flat, correct = gradient.flatten(1), logits.argmax(dim=1) == labels
    shares = (logits >= 0).all(dim=1) & ((logits.sum(dim=1) - 1).abs() < SUM_TOLERANCE)
    zero, nonfinite = (flat == 0).all(dim=1), ~torch.isfinite(flat).all(dim=1)
    return correct, shares, zero, nonfinite, before.detach(), after
