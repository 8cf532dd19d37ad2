"""Your own images: ``<path>/train/<class>/*.png`` and ``<path>/test/<class>/*.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.files import check_readable
from purifiers.core.ranges import Count
from purifiers.core.traits import DatasetTraits, Layout
from purifiers.datasets import _images
from purifiers.datasets._base import Dataset, Source

UNREAD = (".avif", ".gif", ".heic", ".jp2", ".npy", ".tif", ".tiff")
"""Endings of other images: they are refused, because whoever put them there wants them read."""


class ImageFolder(Dataset):
    """Images in one folder per split and, within it, one folder per class.

    Classes are numbered in the order of the training folders' names. Images are ordered by class,
    then file name; each is resized to cover the shape and its centre is cropped. Hidden files and
    files whose ending is no image's are ignored. The content of the images is part of a run's
    identity.

    Args:
        path: folder with ``train/`` and ``test/``, below the data folder.
        shape: (C, H, W) of the result; one channel is grey, three are RGB.

    Raises:
        UserError: a shape with other channels or sides below 1. On reading: a folder in a class's
            folder, an image in no class's folder, or a file that cannot be read as an image.
    """

    traits = DatasetTraits(
        version=1,
        shape=(3, 32, 32),  # default of the parameter `shape`
        classes=None,
        train=None,
        test=None,
        reads=(
            Layout(
                files=("{path}/{split}/*/*",),
                endings=(".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp"),
            ),
        ),
    )

    def __init__(self, path: str = "image_folder", shape: Sequence[Count] = (3, 32, 32)) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                f"image_folder: shape is {tuple(shape)}: choose (channels, height, width) "
                "with 1 or 3 channels"
            )
        self.path = path
        self.shape = (shape[0], shape[1], shape[2])
        self.classes = None

    def source(self, root: Path) -> Source:
        return Source(f"images in {self.path}/")

    def read(self, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
        folder = root / self.path
        names = _class_names(folder / "train")
        self.classes = len(names)
        numbers = {name: number for number, name in enumerate(names)}
        for name in _class_names(folder / split):
            if name not in numbers:
                raise UserError(
                    f"{folder / split / name} is no class of {folder / 'train'}"
                    f"{did_you_mean(name, names)}; rename or remove it"
                )
            _check_class(folder / split / name)
        files = self.found(root)
        paths = files.of[split] if files else ()
        images = [_images.decode(p.read_bytes(), self.shape, str(p), fit=True) for p in paths]
        labels = [numbers[path.parent.name] for path in paths]
        return np.stack(images), np.array(labels)


def _check_class(folder: Path) -> None:
    """Refuse a class without images, and whatever would otherwise be left out or fail later."""
    (layout,) = ImageFolder.traits.reads
    images = 0
    for path in _visible(folder):
        is_image = path.suffix.lower() in layout.endings
        if path.is_dir() and not is_image:
            raise UserError(
                f"{path}: is a folder in a class's folder, and would be left out: move its images "
                f"to {folder}, or remove it"
            )
        if path.suffix.lower() in UNREAD:
            raise UserError(
                f"{path}: is in a format that is not read ({' '.join(layout.endings)}), and would "
                "be left out: convert or remove it"
            )
        if is_image:
            check_readable(path)
            images += 1
    if not images:
        raise UserError(
            f"{folder} holds no image ({' '.join(layout.endings)}); add images or remove it"
        )


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing; an image folder has train/<class>/ and test/<class>/ "
            "(set PURIFYBENCH_DATA or the parameter 'path')"
        )
    names = [path.name for path in _visible(folder) if path.is_dir()]
    if not names:
        raise UserError(f"{folder} holds no class folders; put the images in {folder}/<class>/")
    (layout,) = ImageFolder.traits.reads
    for path in _visible(folder):
        if path.suffix.lower() in (*layout.endings, *UNREAD) and not path.is_dir():
            raise UserError(
                f"{path}: is in no class's folder, and would be left out: move it to one of "
                f"{folder}/<class>/, or remove it"
            )
    return names


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
