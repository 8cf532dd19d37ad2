"""Centres of the noise, and targets, with which ADP trains its score network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from purifiers.core.augmix import AugMix

DROPPED = 0.05  # share of the coefficients' sum that the DCT drops, appendix C
AUGMIX = AugMix()


def centre_and_target(
    perturbation: str, images: Tensor, seed: int, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Centre of the noise and target of the denoising, each (n, C, H, W).

    - ``gaussian``: the image and the image;
    - ``dct``: centre and target are the image without its smallest frequencies (appendix C);
    - ``augmix``: the centre is the image after AugMix; the target is the middle between both
      (equation 20). Printed, the equation evaluates the network at the middle, so that it would
      never see noise; here it is evaluated at the noisy image.

    Args:
        images: float32 (n, C, H, W) in [0, 1].
        seed, indices: of AugMix's random choices.
    """
    if perturbation == "dct":
        kept = without_small_frequencies(images)
        return kept, kept
    if perturbation == "augmix":
        mixed = AUGMIX(images, seed, indices)
        return mixed, (images + mixed) / 2
    return images, images


def without_small_frequencies(images: Tensor) -> Tensor:
    """Drop the smallest DCT coefficients of each channel, up to ``DROPPED`` of their sum.

    The coefficients are compared by magnitude (our choice; the paper calls them eigenvalues).
    """
    from scipy.fft import dctn, idctn

    coefficients = dctn(images.cpu().numpy(), axes=(2, 3), norm="ortho")
    size = np.abs(coefficients).reshape(*coefficients.shape[:2], -1)
    order = np.argsort(size, axis=2)
    sums = np.cumsum(np.take_along_axis(size, order, axis=2), axis=2)
    small = np.zeros(size.shape, dtype=bool)
    np.put_along_axis(small, order, sums <= DROPPED * sums[..., -1:], axis=2)
    coefficients[small.reshape(coefficients.shape)] = 0.0
    kept = idctn(coefficients, axes=(2, 3), norm="ortho").clip(0.0, 1.0)
    return torch.from_numpy(kept.astype(np.float32)).to(images.device)
