"""The files of CIFAR-10-C (Hendrycks and Dietterich 2019), below the data folder.

``CIFAR-10-C/<corruption>.npy`` holds uint8 images (50000, 32, 32, 3): the 10,000 test images of
CIFAR-10 in their order at severity 1, then 2 and so on. ``labels.npy`` holds their labels.
"""

from __future__ import annotations

from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from torch import Tensor

from purifiers.core.data import data_root
from purifiers.core.errors import UserError

FOLDER = "CIFAR-10-C"
SEVERITIES = 5


def read(
    corruption: str,
    severity: int,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    origin: str,
    remedy: str,
) -> npt.NDArray:
    """Corrupted images, uint8 (n, C, H, W).

    Args:
        images: the clean images (n, C, H, W); only their shape is compared.
        labels: int64 (n,).
        indices: the images' indices in the test split, int64 (n,).
        origin: how the user gets missing files.
        remedy: ends the error messages; what else the user can do.

    Raises:
        UserError: a file is missing or no file of CIFAR-10-C, or the images are others.
    """
    origin = f"{origin}, or {remedy}"
    stored, official_labels = (_open(name, origin) for name in (corruption, "labels"))
    if len(stored) != len(official_labels):
        raise UserError(
            f"{data_root() / FOLDER}: {len(stored)} images in {corruption}.npy, but "
            f"{len(official_labels)} labels in labels.npy; unpack CIFAR-10-C.tar again"
        )
    n_images = len(stored) // SEVERITIES
    where = indices.cpu().numpy()
    shape = (stored.shape[3], *stored.shape[1:3])
    if (
        tuple(images.shape[1:]) != shape
        or where.max() >= n_images
        or (official_labels[where] != labels.cpu().numpy()).any()
    ):
        raise UserError(
            f"{data_root() / FOLDER}: its labels or sizes are not those of these images, "
            "which must be CIFAR-10's test images in the official order; "
            f"{remedy} for other images"
        )
    return stored[where + n_images * (severity - 1)].transpose(0, 3, 1, 2)


def _open(name: str, origin: str) -> npt.NDArray:
    path = data_root() / FOLDER / f"{name}.npy"
    if not path.exists():
        raise UserError(f"{path} is missing: {origin}")
    try:
        stored: npt.NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
        content = f"{stored.dtype} {stored.shape}"
    except (OSError, EOFError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read ({reason}); unpack CIFAR-10-C.tar again") from None
    dimensions = 1 if name == "labels" else 4
    if stored.dtype != np.uint8 or stored.ndim != dimensions or len(stored) % SEVERITIES:
        raise UserError(
            f"{path}: {content} is not a file of CIFAR-10-C; unpack CIFAR-10-C.tar again"
        )
    return stored
