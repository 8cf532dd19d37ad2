"""Square attack in the L-infinity ball: random search on logits (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purifiers.attacks._losses import margin
from purifiers.core import noise
from purifiers.core.active import active_set
from purifiers.core.choices import Stop
from purifiers.core.component import Attack
from purifiers.core.finite import finite
from purifiers.core.numbers import Length
from purifiers.core.ranges import Chance, Count
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits

# Ten-thousandths of the budget after which p is halved: fra31/auto-attack, max-andr/square-attack
# (the paper has the same list without 500).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Queries whose random numbers are drawn together: our choice. Drawing then costs almost nothing
# per query, and the numbers of 1000 RGB images take 3 MB.
BLOCK = 64


class Square(Attack):
    """Recolour a random square to a corner of the ball; keep the change if the margin falls.

    Algorithms 1 and 2 with the margin loss. The first query evaluates the image and the second
    vertical stripes of +-eps. Every other query evaluates a square in which each channel is set to
    x + eps or x - eps. The attack uses no gradient. It never makes a misclassified image worse.

    As in the authors' code, and unlike AutoAttack, no query is spent on a square that changes
    nothing; such a square takes the opposite signs. Squares also reach the last row and column, as
    in algorithm 2. Evaluate a random defence by the mean of several draws (``eot_samples``);
    otherwise the lowest margin is a lucky draw.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        queries: model evaluations per image, including that of the image itself.
        p_init: fraction of the pixels in the first square, in (0, 1]; halved on the schedule of
            10000 queries rescaled to ``queries``.
        stop: ``"never"`` lowers the margin of misclassified images until the budget is used up.
            ``"success"`` drops an image once it is misclassified, as in the paper; it breaks the
            same images.

    Defaults: AutoAttack's 5000 queries and p .8; eps 8/255 as in its CIFAR-10 tables; ``stop`` is
    our choice.
    """

    traits = AttackTraits(version=1, budget=("queries",), passes="queries")

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        queries: Count = 5000,
        p_init: Chance = 0.8,
        stop: Stop = "never",
    ) -> None:
        self.eps = eps
        self.queries = queries
        self.p_init = p_init
        self.stop = stop

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial examples, float32 (n, C, H, W) in [0, 1]."""
        if not len(images):
            return images.clone()
        with torch.no_grad():
            keys = noise.keys(seed, indices, "square").to(images.device)
            return self._search(target, images, labels, indices, keys)

    def _search(
        self, target: Target, images: Tensor, labels: Tensor, indices: Tensor, keys: Tensor
    ) -> Tensor:
        shape, sides = images.shape[1:], self._sides(images.shape[2], images.shape[3])
        clean = images.flatten(2)
        result, current = clean.clone(), clean.clone()
        active = active_set(images, indices)
        logits = finite(target(images, indices))
        unbroken = target.unbroken(logits, images, labels, indices)
        best = margin(logits, labels)
        best = torch.where(
            best < 0, best, float("inf")
        )  # any stripes are better than a correctly classified image
        draws = _draw(keys, shape, 0, sides[:BLOCK])
        for query in range(1, self.queries):
            kept = active.update(unbroken) if self.stop == "success" else None
            if kept is not None:
                active.store(result, current)
                current, clean, labels, best, keys, draws = active.reduce(
                    kept, current, clean, labels, best, keys, draws
                )
                if not len(active.rows):
                    break
            number = query - 2
            if number < 0:
                pixels, signs = _stripes(keys, shape)
            else:
                if number and number % BLOCK == 0:
                    draws = _draw(keys, shape, number, sides[number : number + BLOCK])
                pixels, signs = _square(draws[:, number % BLOCK], shape, sides[number])
            pixels = pixels.unsqueeze(1).expand(-1, shape[0], -1)
            old = current.gather(2, pixels)
            new = _moved(clean.gather(2, pixels), self.eps * signs, old)
            current.scatter_(2, pixels, new)
            candidate = current.view(-1, *shape)
            logits = finite(target(candidate, active.indices))
            margins = margin(logits, labels)
            better = active.only(margins < best)
            if self.stop == "success":
                unbroken = target.unbroken(logits, candidate, labels, active.indices) | ~better
            best = torch.where(better, margins, best)
            current.scatter_(2, pixels, torch.where(better.view(-1, 1, 1), new, old))
        active.store(result, current)
        return result.view(images.shape)

    def _sides(self, height: int, width: int) -> list[int]:
        """Side of each square, query by query, in pixels."""
        sides = []
        for step in range(self.queries):
            spent = int(step / self.queries * 10000)
            share = self.p_init / 2 ** sum(spent > after for after in HALVINGS)
            side = max(round(math.sqrt(share * height * width)), 1)
            sides.append(min(side, height, width))
        return sides


def _stripes(keys: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """All pixels (n, H * W), and a sign per channel and column (n, C, H * W)."""
    channels, height, width = shape
    counters = torch.arange(channels * width, device=keys.device).view(channels, width)
    signs = noise.integers(keys, counters, 2) * 2 - 1
    pixels = torch.arange(height * width, device=keys.device).expand(len(keys), -1)
    return pixels, signs.repeat(1, 1, height)


def _draw(keys: Tensor, shape: torch.Size, first: int, sides: list[int]) -> Tensor:
    """Draw row, column and a bit per channel for the squares from number ``first`` on.

    Returns:
        int64 (n, len(sides), 2 + C).
    """
    channels, height, width = shape
    highs = [[height - side + 1, width - side + 1, *[2] * channels] for side in sides]
    counters = torch.arange(len(sides) * (2 + channels), device=keys.device)
    counters += channels * width + first * (2 + channels)  # after the stripes' and earlier squares'
    high = torch.tensor(highs, device=keys.device).flatten()
    return noise.integers(keys, counters, high).view(len(keys), len(sides), -1)


def _square(drawn: Tensor, shape: torch.Size, side: int) -> tuple[Tensor, Tensor]:
    """The square's pixels (n, side * side), and a sign per channel (n, C, 1)."""
    steps = torch.arange(side, device=drawn.device)
    down, right = drawn[:, 0, None] + steps, drawn[:, 1, None] + steps
    pixels = down.unsqueeze(2) * shape[2] + right.unsqueeze(1)
    return pixels.flatten(1), drawn[:, 2:, None] * 2 - 1


def _moved(clean: Tensor, shift: Tensor, old: Tensor) -> Tensor:
    """``clean + shift`` clipped to [0, 1], or ``clean - shift`` where an image equals ``old``."""
    new = (clean + shift).clamp_(0.0, 1.0)
    idle = (new == old).flatten(1).all(dim=1).view(-1, 1, 1)
    return torch.where(idle, (clean - shift).clamp_(0.0, 1.0), new)
