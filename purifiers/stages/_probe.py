"""What an attacked model tells about the attack: signs by which a weak one can be known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.defence import Defence
from purifiers.core.target import Target, as_target

PROBED = 64
"""Images looked at, the first of a set; our choice: an eighth of a set of 512 costs little."""


def probe(
    defence: Defence, clean: Tensor, adversarial: Tensor, labels: Tensor, indices: Tensor
) -> dict[str, int | float | None]:
    """Input gradients at the clean images, and the loss before and after the attack.

    Args:
        defence: as the attacker sees it.
        clean, adversarial: float32 (n, C, H, W) in [0, 1].

    Returns:
        ``images``: n; ``correct``: how many have their label before the attack; ``moved``: how many
        of these the attack changed (some attacks give back what they could not break);
        ``zero_gradient`` and ``nonfinite_gradient``: how many images have one (None where the
        attacker takes no gradients); ``loss_clean`` and ``loss_adversarial``: mean cross entropy;
        ``loss_rose``: on how many images it rose.
    """
    target = as_target(defence)
    given = (clean, adversarial, labels, indices)
    rows = max(PROBED // defence.eot_samples, 1)  # at a time, so that memory sees no more than that
    takes = defence.gradient != "none"
    parts = [
        _probe(target, takes, *part)
        for part in zip(*(every.split(rows) for every in given), strict=True)
    ]
    correct, zero, nonfinite, before, after = (torch.cat(part) for part in zip(*parts, strict=True))
    changed = (adversarial != clean).flatten(1).any(dim=1)
    return {
        "images": len(clean),
        "correct": int(correct.sum()),
        "moved": int((correct & changed).sum()),
        "zero_gradient": int(zero.sum()) if takes else None,
        "nonfinite_gradient": int(nonfinite.sum()) if takes else None,
        "loss_clean": float(before.mean()),
        "loss_adversarial": float(after.mean()),
        "loss_rose": int((after > before).sum()),
    }


def _probe(
    target: Target,
    takes: bool,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    indices: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per image (n,): is it correct, is its gradient zero, is it not finite, loss before, after."""

    def losses(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    leaf, gradient = clean.detach().requires_grad_(takes), torch.zeros_like(clean)
    with torch.set_grad_enabled(takes):
        answer = target(leaf, indices)
        before = losses(answer)
        if takes:
            (gradient,) = torch.autograd.grad(before.sum(), leaf)
    with torch.no_grad():
        after = losses(target(adversarial, indices))
    flat, correct = gradient.flatten(1), answer.argmax(dim=1) == labels
    return correct, (flat == 0).all(dim=1), ~torch.isfinite(flat).all(dim=1), before.detach(), after
