"""Masks and matrix completion of ME-Net (Yang et al. 2019), shared by its training and its method.

An image (C, H, W) is the matrix H x C W of its channels side by side, with values in [-1, 1]
(`YyzHarry/ME-Net`, ``me-channel concat``, as all constants here). Computed in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from purifiers.core.choices import CHOICES
from purifiers.core.errors import UserError, check_choice
from purifiers.core.noise import keys_on, uniform_on

TIE = 1e-12
"""Eigenvalues closer than this share of the largest count as equal in derivatives; our choice."""


@dataclass(frozen=True)
class Completion:
    """Completion of masked matrices.

    - ``usvt``: set dropped entries to 0, keep the largest singular values, and divide by the share
      of kept entries (universal singular value thresholding, Chatterjee 2015).
    - ``nuclear_norm``: minimise ``weight`` ||X||_* + the sum of squared differences at the kept
      entries, by Soft-Impute from X = 0 (Mazumder et al. 2010). Upstream solves the same problem
      with SCS.

    Attributes:
        kind: ``usvt`` or ``nuclear_norm``.
        rank: number of singular values that ``usvt`` keeps.
        weight: of the nuclear norm.
        iterations: of Soft-Impute.

    Raises:
        UserError: an unknown kind.
    """

    kind: str
    rank: int
    weight: float
    iterations: int

    def __post_init__(self) -> None:
        check_choice("me_net: completion", self.kind, CHOICES["CompletionKind"])

    def __call__(self, images: Tensor, kept: Tensor) -> Tensor:
        """Completed images, clipped to [0, 1].

        Differentiable, also where singular values are equal. Between the last kept and the first
        dropped singular value the derivative of ``usvt`` does not exist if they are equal; the
        terms of such pairs are 0.

        Args:
            images: (n, C, H, W) in [0, 1].
            kept: bool, same shape.

        Raises:
            UserError: more singular values to keep than rows.
        """
        count, channels, height, width = images.shape
        if self.kind == "usvt" and self.rank > height:
            raise UserError(
                f"me_net: rank is {self.rank}, but the images have {height} rows: lower it"
            )
        mask, matrices = _matrices(kept), 2.0 * _matrices(images) - 1.0
        if self.kind == "usvt":
            share = mask.mean(dim=(1, 2), keepdim=True).clamp_min(1.0 / mask[0].numel())
            completed = _filtered(mask * matrices, self._largest) / share
        else:
            completed = self._soft_impute(mask, matrices)
        pixels = (completed.clamp(-1.0, 1.0) + 1.0) / 2.0
        pixels = pixels.view(count, height, channels, width).transpose(1, 2)
        return pixels.to(images.dtype).contiguous()

    def _largest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        factors = torch.zeros_like(values)
        factors[:, values.shape[1] - self.rank :] = 1.0
        return factors, torch.zeros_like(values)

    def _shrunk(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of singular values that shrink by half the weight, the step of Soft-Impute."""
        threshold = self.weight / 2.0
        singular = values.clamp_min(0.0).sqrt()
        above = singular > threshold
        safe = torch.where(above, singular, torch.ones_like(singular))
        zero = torch.zeros_like(singular)
        factors = torch.where(above, 1.0 - threshold / safe, zero)
        return factors, torch.where(above, threshold / (2.0 * safe**3), zero)

    def _soft_impute(self, mask: Tensor, matrices: Tensor) -> Tensor:
        def iterate(completed: Tensor) -> Tensor:
            return _filtered(torch.where(mask > 0, matrices, completed), self._shrunk)

        completed = torch.zeros_like(matrices)
        for _ in range(self.iterations):
            if torch.is_grad_enabled() and matrices.requires_grad:
                completed = checkpoint(iterate, completed, use_reentrant=False)
            else:
                completed = iterate(completed)
        return completed


def drawn_mask(
    images: Tensor, chance: float | Tensor, seed: int, indices: Tensor, tag: str
) -> Tensor:
    """Which entries are kept, bool (n, C, H, W); an image's mask depends on (seed, index, tag).

    Args:
        images: (n, C, H, W).
        chance: probability of keeping an entry, a number or (n, 1, 1, 1).
        indices: int64 (n,), not negative.
    """
    keys = keys_on(seed, indices.to(images.device), tag)
    return uniform_on(keys, images.shape[1:]) < chance


def mask_chances(start: float, end: float, masks: int) -> list[float]:
    """Probabilities of the training masks, rising in equal steps; the first is above ``start``."""
    return [start + number * (end - start) / masks for number in range(1, masks + 1)]


def check_chances(start: float, end: float) -> None:
    """Raise an error unless the probabilities rise and drop some entries.

    Raises:
        UserError: they fall, or nothing would be dropped.
    """
    if start > end:
        raise UserError(f"me_net: keep_start is {start:g}, above keep_end, {end:g}: exchange them")
    if start == 1.0:
        raise UserError("me_net: keep_start is 1, so that no entry is dropped: lower it")


def _matrices(images: Tensor) -> Tensor:
    """Images (n, C, H, W) as matrices (n, H, C W) of doubles."""
    return images.double().transpose(1, 2).flatten(2)


Rule = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Squared singular values (n, h), ascending, to the factors of the singular values (n, h), and the
factors' derivatives by the squares."""


def _filtered(matrices: Tensor, rule: Rule) -> Tensor:
    """Multiply the singular values of each matrix (n, h, m) by the factors of ``rule``.

    With M = U S V', the result is U f(S S') U' M: a function of the symmetric M M', whose
    derivative exists where singular values are equal.
    """
    squares = matrices @ matrices.transpose(1, 2)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(squares)
        factors, slopes = rule(values)
    weights: Tensor = _SpectralFunction.apply(squares, values, vectors, factors, slopes)
    return weights @ matrices


class _SpectralFunction(torch.autograd.Function):
    """U f U' of a symmetric matrix U L U' (n, h, h), with its derivative (Daleckii and Krein).

    The derivative weights the pair (i, j) of eigenvectors by (f_i - f_j) / (l_i - l_j), and by the
    slope of f where the eigenvalues are equal.
    """

    @staticmethod
    def forward(
        ctx: Any, squares: Tensor, values: Tensor, vectors: Tensor, factors: Tensor, slopes: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, vectors, factors, slopes)
        return (vectors * factors.unsqueeze(1)) @ vectors.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        values, vectors, factors, slopes = ctx.saved_tensors
        gaps = values.unsqueeze(2) - values.unsqueeze(1)
        tied = gaps.abs() <= TIE * values.abs().amax(dim=1).view(-1, 1, 1)
        quotients = (factors.unsqueeze(2) - factors.unsqueeze(1)) / torch.where(tied, 1.0, gaps)
        means = (slopes.unsqueeze(2) + slopes.unsqueeze(1)) / 2.0
        pairs = torch.where(tied, means, quotients)
        symmetric = (gradients[0] + gradients[0].transpose(1, 2)) / 2.0
        rotated = vectors.transpose(1, 2) @ symmetric @ vectors
        return vectors @ (pairs * rotated) @ vectors.transpose(1, 2), None, None, None, None
