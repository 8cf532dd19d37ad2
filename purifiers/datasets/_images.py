"""Decoder of image files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from purifiers.core.errors import UserError

_MODES = {1: "L", 3: "RGB"}


def is_jpeg(data: bytes) -> bool:
    """Whether encoded bytes begin like a JPEG file (ITU-T T.81: the SOI marker)."""
    return data[:2] == b"\xff\xd8"


def decode(data: bytes, shape: Sequence[int], where: str, fit: bool = False) -> np.ndarray:
    """Decode one image.

    Args:
        data: bytes of a file, in any format that Pillow reads.
        shape: (C, H, W), with one channel (grey) or three (RGB).
        where: name of the image in messages.
        fit: apply the EXIF orientation, resize the image (bilinear, filtered when it shrinks) to
            cover the shape, and crop the centre. Otherwise a different size is an error.

    Returns:
        uint8 (C, H, W).

    Raises:
        UserError: the bytes are not an image, or it has another size.
    """
    channels, height, width = shape
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.mode.startswith(("I", "F")):
            raise UserError(
                f"{where}: has more than 8 bits per channel (mode {image.mode}); convert it to 8 "
                "bits, because scaling it needs to know its range"
            )
        if fit:
            image = ImageOps.exif_transpose(image)
        image = image.convert(_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: cannot be read as an image ({error})") from error
    if fit:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    if image.size != (width, height):
        raise UserError(f"{where}: {image.width}x{image.height}, expected {width}x{height}")
    pixels = np.asarray(image, np.uint8)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)
