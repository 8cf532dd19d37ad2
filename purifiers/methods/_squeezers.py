"""Feature squeezers (Xu et al. 2018, section III): bit depth, median and non-local means."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import denoise_nl_means
from torch import Tensor

from purifiers.core.errors import UserError
from purifiers.core.straight_through import with_gradient_of


def check_window(name: str, side: int, images: Tensor) -> None:
    """Refuse a window that is larger than the images.

    Args:
        name: of the parameter, with its component.
        side: of the window, in pixels.
        images: (n, C, H, W).

    Raises:
        UserError: a side of the images is smaller.
    """
    height, width = images.shape[2:]
    if side > min(height, width):
        raise UserError(f"{name} is {side}, larger than {height}x{width} images: lower it")


def check_strength(name: str, strength: float) -> None:
    """Refuse a strength of 0, at which every weight of non-local means is 0/0.

    Raises:
        UserError: the strength is 0.
    """
    if strength == 0.0:
        raise UserError(f"{name} is 0: choose a number above 0, such as 4/255")


def squeezers(
    owner: str,
    bits: int | None,
    median_side: int,
    nlm_search: int | None,
    nlm_patch: int,
    nlm_strength: float,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the squeezers that the parameters ask for, in this order.

    Args:
        owner: name of the component, for error messages of windows that are too large.
        bits: see :func:`reduce_bits`; None: left out.
        median_side: see :func:`median`; 1: left out.
        nlm_search, nlm_patch, nlm_strength: see :func:`non_local_means`; ``nlm_search`` None: left
            out.
    """
    if bits is not None:
        yield lambda images: reduce_bits(images, bits)
    if median_side > 1:

        def filtered(images: Tensor) -> Tensor:
            check_window(f"{owner}: median", median_side, images)
            return median(images, median_side)

        yield filtered
    if nlm_search is not None:

        def averaged(images: Tensor) -> Tensor:
            check_window(f"{owner}: nlm_search", nlm_search, images)
            return non_local_means(images, nlm_search, nlm_patch, nlm_strength)

        yield averaged


def reduce_bits(images: Tensor, bits: int) -> Tensor:
    """Round to 2^bits levels in [0, 1]; the gradient is the identity's (straight-through).

    Levels and rounding are those of `mzweilin/EvadeML-Zoo`: halves are rounded to even levels.
    """
    steps = 2**bits - 1
    return with_gradient_of((images * steps).round() / steps, images)


def median(images: Tensor, side: int) -> Tensor:
    """Median of a window around every pixel, differentiable: the gradient goes to the pixel taken.

    Computed by SciPy where no gradient is needed and the images are not on a GPU. As there with
    ``mode="reflect"``, which `mzweilin/EvadeML-Zoo` uses: an even window reaches further up and
    left, of an even number of values the upper median is taken, and images are mirrored at the
    border, the border pixel included.

    Args:
        images: (n, C, H, W).
        side: of the window, in pixels.
    """
    if images.device.type == "cpu" and not (torch.is_grad_enabled() and images.requires_grad):
        filtered = ndimage.median_filter(
            images.detach().numpy(), (1, 1, side, side), mode="reflect"
        )
        return torch.from_numpy(filtered)
    return _differentiable_median(images, side)


def _differentiable_median(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[2:]
    before = side // 2
    margin = (before, side - 1 - before)
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(size), margin, mode="symmetric")).to(images.device)
        for size in (height, width)
    )
    padded = images[:, :, rows][..., columns]
    shifted = [
        padded[..., row : row + height, column : column + width]
        for row in range(side)
        for column in range(side)
    ]
    return torch.stack(shifted).sort(dim=0).values[side**2 // 2]


def non_local_means(images: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Mean of the pixels in a search window, weighted by the similarity of the patches around them.

    Computed by scikit-image's fast mode (Darbon et al. 2008), at five times less disk space than
    OpenCV, which `mzweilin/EvadeML-Zoo` uses. At equal strength scikit-image smooths more: it sums
    (patch - 1)^2 differences of patch^2. OpenCV filters luminance and colour separately. The
    gradient is the identity's (straight-through).

    Args:
        images: float32 (n, C, H, W) in [0, 1].
        search, patch: odd sides of the windows, in pixels.
        strength: distance between patches beyond which weights vanish (OpenCV: h / 255), above 0.
    """
    arrays = images.detach().permute(0, 2, 3, 1).cpu().numpy()
    smooth = [
        denoise_nl_means(array, patch, search // 2, strength, fast_mode=True, channel_axis=-1)
        for array in arrays
    ]
    # scikit-image drops the axis of a single channel
    stacked = np.stack(smooth).reshape(arrays.shape) if smooth else arrays
    values = torch.from_numpy(stacked).to(images).permute(0, 3, 1, 2).contiguous()
    return with_gradient_of(values.clamp(0.0, 1.0), images)
