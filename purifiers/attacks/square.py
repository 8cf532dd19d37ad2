"""Square attack in the L-infinity ball: random search by scores (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purifiers.attacks._linf import check_count, check_stop
from purifiers.attacks._losses import margin
from purifiers.core import noise
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.target import Target, finite
from purifiers.core.traits import AttackTraits

# Ten-thousandths of the budget after which p is halved: fra31/auto-attack, max-andr/square-attack
# (the paper lists the same without 500).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Queries whose random numbers are drawn together: our choice, so that drawing costs next to
# nothing per query and the numbers of 1000 RGB images take 3 MB.
BLOCK = 64


class Square(Attack):
    """Recolour a random square with a corner of the ball; keep it if the margin falls.

    Algorithms 1 and 2 with the margin loss. The first query asks for the image, the second for
    vertical stripes of +-eps, every other one for a square in which each channel is set to
    x + eps or x - eps. Only scores are read, never a gradient. An image that is misclassified
    from the start is never made worse.

    As in the authors' code, and unlike in AutoAttack, no query is spent on a square that would
    change nothing: it then takes the opposite signs. Squares also reach the last row and column,
    as in algorithm 2. A random defence should answer with the mean of several draws
    (``eot_samples``), or the lowest margin seen is luck.

    Args:
        eps: L-infinity radius on the [0, 1] scale.
        queries: answers of the model per image, the one for the image itself included.
        p_init: share of the pixels in the first square, in (0, 1]; halved on the schedule of
            10000 queries rescaled to ``queries``.
        stop: ``"never"`` goes on lowering the margin of misclassified images until the budget is
            used up; ``"success"`` stops asking for an image once it is misclassified, the form
            of the paper, with the same images broken.

    Defaults: AutoAttack's 5000 queries and p .8; eps 8/255 as in its CIFAR-10 tables; ``stop``
    is our choice.
    """

    traits = AttackTraits(version=1, budget=("queries",), passes="queries")

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        queries: int = 5000,
        p_init: float = 0.8,
        stop: str = "never",
    ) -> None:
        check_count("square", queries=queries)
        if not 0 < p_init <= 1:
            raise UserError(f"square: p_init is {p_init}, but a share of the pixels is in (0, 1]")
        self.eps = eps
        self.queries = queries
        self.p_init = p_init
        self.stop = check_stop("square", stop)

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Adversarial images, float32 (n, C, H, W) in [0, 1]."""
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
        rows = torch.arange(len(images), device=images.device)
        logits = finite(target(images, indices))
        unbroken = target.unbroken(logits, images, labels, indices)
        best = margin(logits, labels)
        best = torch.where(best < 0, best, float("inf"))  # a correct image takes any stripes
        draws = _draw(keys, shape, 0, sides[:BLOCK])
        for query in range(1, self.queries):
            if self.stop == "success" and not unbroken.all():
                result[rows] = current
                rows, current, clean = rows[unbroken], current[unbroken], clean[unbroken]
                if not len(rows):
                    break
                labels, best = labels[unbroken], best[unbroken]
                keys, draws = keys[unbroken], draws[unbroken]
                indices = indices[unbroken.to(indices.device)]
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
            logits = finite(target(candidate, indices))
            found = margin(logits, labels)
            better = found < best
            if self.stop == "success":
                unbroken = target.unbroken(logits, candidate, labels, indices) | ~better
            best = torch.where(better, found, best)
            current.scatter_(2, pixels, torch.where(better.view(-1, 1, 1), new, old))
        result[rows] = current
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
    """Row, column and a bit per channel of the squares from number ``first`` on.

    Returns:
        int64 (n, len(sides), 2 + C).
    """
    channels, height, width = shape
    highs = [[height - side + 1, width - side + 1, *[2] * channels] for side in sides]
    counters = torch.arange(len(sides) * (2 + channels), device=keys.device)
    counters += channels * width + first * (2 + channels)  # behind the stripes and earlier squares
    high = torch.tensor(highs, device=keys.device).flatten()
    return noise.integers(keys, counters, high).view(len(keys), len(sides), -1)


def _square(drawn: Tensor, shape: torch.Size, side: int) -> tuple[Tensor, Tensor]:
    """The square's pixels (n, side * side), and a sign per channel (n, C, 1)."""
    steps = torch.arange(side, device=drawn.device)
    down, right = drawn[:, 0, None] + steps, drawn[:, 1, None] + steps
    pixels = down.unsqueeze(2) * shape[2] + right.unsqueeze(1)
    return pixels.flatten(1), drawn[:, 2:, None] * 2 - 1


def _moved(clean: Tensor, shift: Tensor, old: Tensor) -> Tensor:
    """``clean + shift`` in [0, 1], or ``clean - shift`` for images where that is ``old``."""
    new = (clean + shift).clamp_(0.0, 1.0)
    idle = (new == old).flatten(1).all(dim=1).view(-1, 1, 1)
    return torch.where(idle, (clean - shift).clamp_(0.0, 1.0), new)
