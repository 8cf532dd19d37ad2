"""Total variation minimisation on the kept pixels of a batch, by split Bregman iterations.

scikit-image 0.26 (``denoise_tv_bregman``, ``denoise_tv_chambolle``), SciPy, OpenCV and kornia have
no total variation with a mask, and take one image at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 0.05
"""Contrast below which an iteration removes an edge; affects the speed of convergence only. Our
choice: of .025 to .3 it was the nearest to the minimum after 100 iterations on photographs."""
CHUNK = 16
"""Images solved together, so that the arrays stay in a processor's cache; our choice."""


def inpaint(images: Tensor, kept: Tensor, weight: float, iterations: int) -> Tensor:
    """Minimise 1/2 ||kept (z - images)||^2 + weight TV(z) over z, for each channel of each image.

    TV is isotropic: the sum over pixels of the norm of the forward differences, which are 0 across
    the border. Goldstein & Osher 2009: one sweep of Gauss-Seidel per iteration. Rows
    are swept in a checkerboard, so that a batch is solved by operations on whole arrays.

    Args:
        images: float32 (n, C, H, W); values that are not kept do not matter.
        kept: 1 for kept values, 0 for dropped ones, same shape.
        weight: of the total variation, above 0.
        iterations: number of iterations, the same for every image.
    """
    chunk = CHUNK if images.device.type == "cpu" else max(1, len(images))
    parts = zip(images.split(chunk), kept.split(chunk), strict=True)
    solved = [_solve(*part, weight, iterations) for part in parts]
    return torch.cat(solved) if solved else images.clone()


def _solve(images: Tensor, kept: Tensor, weight: float, iterations: int) -> Tensor:
    height, width = images.shape[2:]
    kept, known = kept.flatten(0, 1), (kept * images).flatten(0, 1)
    coupling = weight / THRESHOLD
    padded = known.new_zeros(len(known), height + 2, width + 2)
    z = padded[:, 1:-1, 1:-1]
    z.copy_(known)
    colours = [
        (other, new / (kept + coupling * _neighbours(known))) for other, new in _board(known)
    ]
    target, around, shrunk = (torch.zeros_like(known) for _ in range(3))
    # Bregman variables, and split gradients minus these
    down, across, split_down, split_across = (torch.zeros_like(known) for _ in range(4))
    for _ in range(iterations):
        torch.add(known, split_down, alpha=-coupling, out=target).sub_(split_across, alpha=coupling)
        target[:, 1:].add_(split_down[:, :-1], alpha=coupling)
        target[:, :, 1:].add_(split_across[:, :, :-1], alpha=coupling)
        for other, inverse in colours:
            torch.add(padded[:, 2:, 1:-1], padded[:, :-2, 1:-1], out=around)
            around.add_(padded[:, 1:-1, 2:]).add_(padded[:, 1:-1, :-2])
            torch.add(target, around, alpha=coupling, out=around).mul_(inverse)
            z.mul_(other).add_(around)
        down[:, :-1].add_(z[:, 1:]).sub_(z[:, :-1])
        across[:, :, :-1].add_(z[:, :, 1:]).sub_(z[:, :, :-1])
        torch.mul(down, down, out=shrunk).addcmul_(across, across).sqrt_()
        shrunk.clamp_(min=THRESHOLD).reciprocal_().mul_(THRESHOLD)
        split_down.copy_(down)
        split_across.copy_(across)
        down.mul_(shrunk)
        across.mul_(shrunk)
        split_down.sub_(down, alpha=2)
        split_across.sub_(across, alpha=2)
    return z.reshape(images.shape).clone()


def _neighbours(like: Tensor) -> Tensor:
    """Number of neighbours of each pixel, (H, W)."""
    height, width = like.shape[1:]
    rows = like.new_full((height, 1), 2.0)
    columns = like.new_full((1, width), 2.0)
    for ends in (rows[:1], rows[-1:], columns[:, :1], columns[:, -1:]):
        ends.sub_(1.0)
    return rows + columns


def _board(like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(H, W) masks of a checkerboard: the other colour and the colour to update, for both."""
    height, width = like.shape[1:]
    parity = torch.arange(height)[:, None] + torch.arange(width)
    black = (parity % 2).to(like)
    return [(black, 1 - black), (1 - black, black)]
