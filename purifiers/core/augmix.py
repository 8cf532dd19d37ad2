"""AugMix (Hendrycks et al. 2020): random mixtures of an image and chains of plain operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.noise import keys_on, uniform_on

OPERATIONS = (
    *("autocontrast", "equalize", "posterize", "solarize"),
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
)
"""Operations of `google-research/augmix` that overlap with no corruption of CIFAR-10-C."""
LOWEST_LEVEL = 0.1
HIGHEST_PARAMETER = 10.0
"""A level is uniform in [LOWEST_LEVEL, severity]; a parameter is its maximum times level / 10."""
LONGEST_CHAIN = 3
"""A negative depth draws 1 to 3 operations for each chain."""


@dataclass(frozen=True)
class AugMix:
    """Mixtures as `google-research/augmix` makes them with Pillow, for whole batches on a device.

    torchvision's AugMix is not the same: its levels are the first of ten bins, so that a third of
    the geometric operations change nothing and the others are weaker, and it rounds the mixture
    down to whole grey levels.

    The operations work on 8-bit grey levels, as Pillow does; rounding may differ by one level.

    Attributes:
        severity: highest level of an operation, at most 10.
        width: number of chains.
        depth: operations of a chain; negative: 1 to 3, drawn for each chain.
    """

    severity: float = 3.0
    width: int = 3
    depth: int = -1

    def __call__(self, images: Tensor, seed: int, indices: Tensor, tag: str = "") -> Tensor:
        """Mixtures (1 - m) image + m sum_i w_i chain_i(image), float32 (n, C, H, W) in [0, 1].

        m is uniform, w is Dirichlet(1). An image's mixture depends on (seed, its index, tag) alone,
        not on the global random generators.

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            indices: the images' indices, int64 (n,).
        """
        count, shape, slots = len(images), images.shape[1:], self._slots
        keys = keys_on(seed, indices.to(images.device), f"augmix {tag}")
        drawn = uniform_on(keys, (1 + 2 * self.width + 3 * self.width * slots,))
        share, weights, depths, steps = drawn.split(
            (1, self.width, self.width, 3 * self.width * slots), dim=1
        )
        weights = -torch.log1p(-weights)  # exponential, so that their shares are Dirichlet(1)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
        lengths = (1 + (LONGEST_CHAIN * depths).long()).reshape(-1, 1, 1, 1)
        steps = steps.reshape(count * self.width, slots, 3)
        levels = (images * 255.0).round().repeat_interleave(self.width, dim=0)
        for slot in range(slots):
            operation = (len(OPERATIONS) * steps[:, slot, 0]).long()
            level = LOWEST_LEVEL + (self.severity - LOWEST_LEVEL) * steps[:, slot, 1]
            sign = torch.where(steps[:, slot, 2] > 0.5, -1.0, 1.0)
            changed = operated(levels, operation, level, sign)
            if self.depth < 0:
                changed = torch.where(lengths > slot, changed, levels)
            levels = changed
        chains = levels.reshape(count, self.width, *shape) / 255.0
        mixture = (weights[:, :, None, None, None] * chains).sum(1)
        share = share[:, :, None, None]
        return ((1.0 - share) * images + share * mixture).clamp(0.0, 1.0)

    @property
    def _slots(self) -> int:
        return LONGEST_CHAIN if self.depth < 0 else self.depth


def operated(levels: Tensor, operation: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        levels: grey levels 0 to 255, float32 (n, C, H, W).
        operation: number in ``OPERATIONS``, int64 (n,).
        level: in [0, 10], float32 (n,).
        sign: of a geometric operation, -1 or 1, (n,).
    """
    height, width = levels.shape[2:]
    flat = levels.long().flatten(2)
    toned = _tables(flat, operation, level).gather(2, flat).view_as(levels).float()
    grid = _grid(operation, level, sign, height, width)
    moved = functional.grid_sample(
        levels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    inside = ((grid >= -1.0) & (grid < 1.0)).all(-1).unsqueeze(1)
    # Pillow truncates; the addend makes up for the error of weights that do not add up to 1
    moved = torch.where(inside, (moved + 1e-3).floor(), torch.zeros_like(moved))
    geometric = (operation >= OPERATIONS.index("rotate")).view(-1, 1, 1, 1)
    return torch.where(geometric, moved, toned)


def _tables(flat: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """New grey level of each grey level by image and channel, int64 (n, C, 256).

    Args:
        flat: grey levels, int64 (n, C, pixels).
    """
    grey = torch.arange(256, device=flat.device)
    counts = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=flat.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    present = (counts > 0).long()
    lowest = present.argmax(2, keepdim=True)
    highest = 255 - present.flip(2).argmax(2, keepdim=True)
    scale = 255.0 / (highest - lowest).clamp_min(1).double()
    stretched = (grey * scale - lowest * scale).long().clamp(0, 255)
    step = (flat.shape[2] - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    equalized = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    several = highest > lowest
    level = level.view(-1, 1, 1)
    block = 2 ** (4 + _whole(level, 4.0)).clamp_max(8)  # of a 4-bit level and more
    posterized = grey // block * block
    solarized = torch.where(grey < 256 - _whole(level, 256.0), grey, 255 - grey)
    by_name = {
        "autocontrast": torch.where(several, stretched, grey),
        "equalize": torch.where(several & (step > 0), equalized, grey),
        "posterize": posterized,
        "solarize": solarized,
    }
    table = grey.expand_as(counts)
    for name, tones in by_name.items():
        table = torch.where(_is(operation, name).view(-1, 1, 1), tones, table)
    return table


def _grid(operation: Tensor, level: Tensor, sign: Tensor, height: int, width: int) -> Tensor:
    """Place in the image that each pixel takes, in [-1, 1) along both axes, (n, H, W, 2)."""
    zero = torch.zeros_like(level)
    angle = torch.where(_is(operation, "rotate"), -sign * _whole(level, 30.0), zero)
    cosine, sine = (angle * math.pi / 180.0).cos(), (angle * math.pi / 180.0).sin()
    shear = sign * level * 0.3 / HIGHEST_PARAMETER
    shear_x = torch.where(_is(operation, "shear_x"), shear, zero)
    shear_y = torch.where(_is(operation, "shear_y"), shear, zero)
    by_x = torch.where(_is(operation, "translate_x"), sign * _whole(level, width / 3), zero)
    by_y = torch.where(_is(operation, "translate_y"), sign * _whole(level, height / 3), zero)

    def column(value: Tensor) -> Tensor:
        return value.view(-1, 1, 1)

    # Pillow rotates about the centre, but shears about the upper left corner
    x = (torch.arange(width, device=level.device) + 0.5 - width / 2).view(1, 1, -1)
    y = (torch.arange(height, device=level.device) + 0.5 - height / 2).view(1, -1, 1)
    from_x = column(cosine) * x + column(sine) * y + column(by_x)
    from_y = column(cosine) * y - column(sine) * x + column(by_y)
    from_x = from_x + column(shear_x) * (y + height / 2)
    from_y = from_y + column(shear_y) * (x + width / 2)
    return torch.stack(torch.broadcast_tensors(2 * from_x / width, 2 * from_y / height), dim=-1)


def _whole(level: Tensor, highest: float) -> Tensor:
    """A whole parameter, rounded down, int64."""
    return (level * highest / HIGHEST_PARAMETER).long()


def _is(operation: Tensor, name: str) -> Tensor:
    return operation == OPERATIONS.index(name)
