"""Centres of the noise, and targets, with which ADP trains its score network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PERTURBATIONS = ("gaussian", "dct", "augmix")
DROPPED = 0.05  # share of the coefficients' sum that the DCT drops, appendix C
SEVERITY, WIDTH = 3, 3  # of AugMix, Hendrycks et al. 2020 for CIFAR


def centre_and_target(perturbation: str, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Centre of the noise and target of the denoising, each (n, C, H, W).

    - ``gaussian``: the image and the image;
    - ``dct``: centre and target are the image without its smallest frequencies (appendix C);
    - ``augmix``: the centre is the image after AugMix; the target is the middle between both
      (equation 20). Printed, the equation evaluates the network at the middle, so that it would
      never see noise; here it is evaluated at the noisy image.

    Args:
        images: float32 (n, C, H, W) in [0, 1].
        seed: of AugMix.
    """
    if perturbation == "dct":
        kept = without_small_frequencies(images)
        return kept, kept
    if perturbation == "augmix":
        mixed = _augmixed(images, seed)
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


def _augmixed(images: Tensor, seed: int) -> Tensor:
    """Images after AugMix (Hendrycks et al. 2020) by torchvision, each with its own operations."""
    from torchvision.transforms.v2 import AugMix

    augment = AugMix(severity=SEVERITY, mixture_width=WIDTH)
    pixels = (images.cpu() * 255).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixed = torch.stack([augment(image) for image in pixels])
    return mixed.to(images.device, torch.float32) / 255
