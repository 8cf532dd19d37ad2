"""Corruptions of CIFAR-10-C that need NumPy, SciPy and Pillow only.

Each function takes an image (H, W, C) in [0, 1], the constant of a severity and a random generator.
It returns an image that may leave [0, 1]. Formulas, border rules and constants are those of
`hendrycks/robustness`, ImageNet-C/create_c/make_cifar_c.py. Random numbers are drawn in its order,
but from another generator. Lengths that are multiples of 32 pixels there are fractions of the side
here.

No library replaces them: imagecorruptions 1.1.2, imagecorruptions-imaug 1.1.5 and corrupt-tta 0.1.7
have ImageNet-C's constants for every size (Gaussian noise .08 at severity 1, here .04), draw from
NumPy's global generator and need OpenCV and scikit-image; albumentations 2.0.8 and kornia 0.9.0
have no such severities; RobustBench 1.1.1 only loads the files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

Image = npt.NDArray[np.floating[Any]]
Corrupt = Callable[[Image, Any, np.random.RandomState], Image]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601, as in Pillow)."""


def gaussian_noise(image: Image, spread: float, random: np.random.RandomState) -> Image:
    return image + random.normal(size=image.shape, scale=spread)


def shot_noise(image: Image, photons: float, random: np.random.RandomState) -> Image:
    return random.poisson(image * photons) / photons


def impulse_noise(image: Image, share: float, random: np.random.RandomState) -> Image:
    hit = random.uniform(size=image.shape) <= share
    return np.where(hit, random.uniform(size=image.shape) <= 0.5, image).astype(float)


def speckle_noise(image: Image, spread: float, random: np.random.RandomState) -> Image:
    return image + image * random.normal(size=image.shape, scale=spread)


def gaussian_blur(image: Image, sigma: float, random: np.random.RandomState) -> Image:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def glass_blur(
    image: Image, constants: tuple[float, int, int], random: np.random.RandomState
) -> Image:
    """Replace pixels by a random neighbour's value, between two Gaussian blurs.

    Upstream intends to swap the two pixels but swaps views of the array, so that both get the
    neighbour's value. This function does the same.
    """
    sigma, reach, rounds = constants
    shaken = np.floor(255 * gaussian_blur(image, sigma, random)) / 255
    height, width = image.shape[:2]
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                across, down = random.randint(-reach, reach, size=2)
                shaken[row, column] = shaken[row + down, column + across]
    return gaussian_blur(shaken, sigma, random)


def defocus_blur(
    image: Image, constants: tuple[float, float], random: np.random.RandomState
) -> Image:
    """Correlate with a disk of some radius, smoothed by a 3x3 Gaussian."""
    radius, alias = constants
    down, across = np.mgrid[-8:9, -8:9]
    disk = (down**2 + across**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), alias, mode="mirror", radius=1)
    return ndimage.correlate(image, kernel[..., None], mode="mirror")


def zoom_blur(image: Image, end: float, random: np.random.RandomState) -> Image:
    """Mean of the image and of its centre enlarged by 1, 1.01, ... below ``end``."""
    factors = np.arange(1, end, 0.01)
    return (image + sum(_zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(image: Image, factor: float) -> Image:
    size = np.array(image.shape[:2])
    part = np.ceil(size / factor).astype(int)
    top, left = (size - part) // 2
    centre = image[top : top + part[0], left : left + part[1]]
    large = ndimage.zoom(centre, (factor, factor, 1), order=1)
    top, left = (np.array(large.shape[:2]) - size) // 2
    return large[top : top + size[0], left : left + size[1]]


def brightness(image: Image, rise: float, random: np.random.RandomState) -> Image:
    """Raise HSV's value (the largest channel); hue and saturation are unchanged."""
    value = image.max(axis=2, keepdims=True)
    raised = np.clip(value + rise, 0, 1)
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def saturate(image: Image, constants: tuple[float, float], random: np.random.RandomState) -> Image:
    """Multiply HSV's saturation by a factor and add a shift.

    Grey pixels have no hue and turn red, as upstream. An image of one channel is treated as three
    equal channels and returned as their luma.
    """
    factor, shift = constants
    colour = image if image.shape[2] == 3 else image.repeat(3, axis=2)
    value = colour.max(axis=2, keepdims=True)
    span = value - colour.min(axis=2, keepdims=True)
    hue = np.where(span > 0, (value - colour) / np.where(span > 0, span, 1), [0.0, 1.0, 1.0])
    saturation = np.clip(factor * span / np.where(value > 0, value, 1) + shift, 0, 1)
    saturated = value * (1 - saturation * hue)
    return saturated if image.shape[2] == 3 else saturated @ np.array(LUMA)[:, None]


def contrast(image: Image, factor: float, random: np.random.RandomState) -> Image:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def jpeg_compression(image: Image, quality: int, random: np.random.RandomState) -> Image:
    buffer = io.BytesIO()
    _picture(image).save(buffer, "JPEG", quality=quality)
    return _array(Pillow.open(buffer))


def pixelate(image: Image, share: float, random: np.random.RandomState) -> Image:
    height, width = image.shape[:2]
    small = (int(width * share), int(height * share))
    box = Pillow.Resampling.BOX
    return _array(_picture(image).resize(small, box).resize((width, height), box))


def elastic_transform(
    image: Image, constants: tuple[float, float, float], random: np.random.RandomState
) -> Image:
    """Apply a random affine map of three points, then a smooth random displacement field.

    Both interpolate the image linearly. The field's amplitude, its standard deviation and the reach
    of the points are fractions of the image's side.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    alpha, sigma, reach = (side * part for part in constants)
    centre, third = np.array([width, height]) // 2, side // 3
    points = centre + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = points + random.uniform(-reach, reach, size=points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # from the new image to the old one
    down, across = np.mgrid[:height, :width].astype(float)
    places = np.stack([across, down, np.ones_like(down)], axis=2) @ back
    turned = _read(image, places[..., 1], places[..., 0], "mirror")
    shifts = [
        alpha * ndimage.gaussian_filter(random.uniform(-1, 1, (height, width)), sigma, truncate=3)
        for _ in range(2)
    ]
    return _read(turned, down + shifts[1], across + shifts[0], "reflect")


def _read(image: Image, down: Image, across: Image, mode: str) -> Image:
    planes = np.moveaxis(image, 2, 0)
    channels = [ndimage.map_coordinates(p, [down, across], order=1, mode=mode) for p in planes]
    return np.stack(channels, axis=2)


def _picture(image: Image) -> Pillow.Image:
    pixels = np.rint(255 * image).astype(np.uint8)
    return Pillow.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def _array(picture: Pillow.Image) -> Image:
    pixels = np.asarray(picture) / 255
    return pixels if pixels.ndim == 3 else pixels[..., None]


MADE: Mapping[str, tuple[Corrupt, tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "glass_blur": (
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
}
"""Name to function and its constants for severities 1 to 5."""
