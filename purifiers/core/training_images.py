"""Batches of training images: kept on the device where they fit, augmented there."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from purifiers.core.noise import generator

RESIDENT_SHARE = 0.25
"""Largest share of a device's free memory that the training images may take; our choice. CIFAR-10
takes 0.15 GB."""


class Pixels(Protocol):
    """Training images: an array, or an object that reads rows of an array on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray: ...


class TrainingImages:
    """Images and labels of a training, by row.

    Args:
        pixels: uint8 or float32 (n, C, H, W), possibly memory-mapped.
        labels: int64 (n,).
        device: where batches are needed.
        resident: copy all images to the device once. None: on a GPU if they fit, see
            :data:`RESIDENT_SHARE`. It changes no value.
    """

    def __init__(
        self, pixels: Pixels, labels: npt.NDArray, device: str, resident: bool | None = None
    ) -> None:
        self._pixels, self._device = pixels, device
        self._resident: Tensor | None = None
        if _fits(pixels, device) if resident is None else resident:
            self._resident = torch.from_numpy(np.ascontiguousarray(pixels[np.arange(len(pixels))]))
            self._resident = self._resident.to(device)
        self._labels = torch.from_numpy(np.asarray(labels)).to(device)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images, float32 (n, C, H, W) in [0, 1], and labels (n,), on the device.

        Args:
            rows: int64 (n,), on the CPU.
        """
        device_rows = rows.to(self._device, non_blocking=True)
        if self._resident is None:
            return to_float(self._pixels[rows.numpy()], self._device), self._labels[device_rows]
        images = self._resident[device_rows]
        if images.dtype == torch.uint8:
            images = images.float().div_(255.0)
        return images, self._labels[device_rows]


def _fits(pixels: Pixels, device: str) -> bool:
    if torch.device(device).type != "cuda" or not len(pixels):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return pixels[np.arange(1)].nbytes * len(pixels) <= RESIDENT_SHARE * free


def to_float(pixels: npt.NDArray, device: str = "cpu") -> Tensor:
    """Convert uint8 NCHW pixels to float32 images in [0, 1]; float32 images are unchanged."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return tensor.float().div_(255.0) if tensor.dtype == torch.uint8 else tensor


def augment(images: Tensor, augmentation: str, seed: int, padding: int = 4) -> Tensor:
    """Randomly shift images by up to ``padding`` pixels and flip them horizontally.

    Args:
        images: float32 (n, C, H, W).
        augmentation: ``none``, ``flip``, or ``crop_flip`` for both.
        padding: pixels of zeros on each side.
    """
    if augmentation == "none":
        return images
    draw, device = generator(seed, "augment"), images.device
    count, _, height, width = images.shape
    if augmentation == "crop_flip":
        padded = nn.functional.pad(images, (padding,) * 4)
        shifts = 2 * padding + 1
        down = torch.randint(0, shifts, (count, 1), generator=draw)
        right = torch.randint(0, shifts, (count, 1), generator=draw)
        rows = (down + torch.arange(height)).to(device, non_blocking=True)
        columns = (right + torch.arange(width)).to(device, non_blocking=True)
        numbers = torch.arange(count, device=device)
        images = padded.permute(0, 2, 3, 1)[
            numbers[:, None, None], rows[:, :, None], columns[:, None, :]
        ].permute(0, 3, 1, 2)
    flipped = torch.rand(count, generator=draw) < 0.5
    mask = flipped.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(mask, images.flip(3), images).contiguous()
