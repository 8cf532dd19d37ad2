"""Adversarial images that somebody else made, read from a file and checked against the ball."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.files import digest_of
from purifiers.core.image_file import ImageFile, read_image_file
from purifiers.core.numbers import Length, Radius
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits

TOLERANCE = 1e-6
"""Largest excess over the radius on the [0, 1] scale, as for the suite's own attacks."""


class Stored(Attack):
    """The images of a file with the indices of the clean images.

    The file is an ``.npz`` with the arrays ``images`` (float32 in [0, 1] or uint8, (n, C, H, W)),
    ``labels`` and ``indices``, or a parquet file as :func:`purifiers.save_images` writes it. Labels
    and indices are optional; without indices the images are 0 ... n-1 of the data set.

    It queries no model. On other models than the one that the images were made for, it is a
    transferred attack. In a table, the cell's threat model states what their author could query:
    ``oblivious`` for the classifier alone or an unknown model, ``white_box`` for the whole defence.

    Args:
        path: the file; its content is part of a run's identity.
        eps: L-infinity radius on the [0, 1] scale that the images must keep; null: not checked.
        radius: L2 radius over all pixels of an image that they must keep; null: not checked.

    Raises:
        UserError: a file that cannot be read; images that are missing, of other labels or shape, or
            outside the ball.
    """

    traits = AttackTraits(version=1, passes="0", files=("path",))

    def __init__(
        self, *, path: str, eps: Length | None = None, radius: Radius | None = None
    ) -> None:
        self.path, self.eps, self.radius = path, eps, radius

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; correct path")
        content = _content(path, digest_of(path))
        where = np.searchsorted(content.indices, indices.numpy())
        where = where.clip(max=max(len(content.indices) - 1, 0))
        absent = content.indices[where] != indices.numpy()
        if absent.any():
            index = int(indices[int(absent.argmax())])
            raise UserError(f"{self.path}: has no image of index {index}; store all images")
        stored = content.images[where]
        if stored.shape != tuple(images.shape):
            raise UserError(
                f"{self.path}: images have shape {stored.shape[1:]}, expected "
                f"{tuple(images.shape[1:])}; store them in the data set's shape"
            )
        if content.labels is not None and (content.labels[where] != labels.cpu().numpy()).any():
            raise UserError(
                f"{self.path}: its labels are not those of the data set; check the order of the "
                "images and their indices"
            )
        pixels = torch.from_numpy(stored)
        adversarial = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        adversarial = adversarial.to(images.device)
        if adversarial.numel() and not 0 <= adversarial.min() <= adversarial.max() <= 1:
            raise UserError(f"{self.path}: images leave [0, 1]; store them on that scale")
        self._check_ball(images, adversarial)
        return adversarial

    def _check_ball(self, images: Tensor, adversarial: Tensor) -> None:
        difference = (adversarial - images).flatten(1)
        for name, limit, order in (("eps", self.eps, torch.inf), ("radius", self.radius, 2)):
            if limit is None or not len(images):
                continue
            distance = torch.linalg.vector_norm(difference, order, dim=1)
            outside = int((distance > limit + TOLERANCE).sum())
            if outside:
                raise UserError(
                    f"{self.path}: {outside} of {len(images)} images leave the ball of {name} "
                    f"{limit:g}, by up to {float(distance.max()) - limit:.3g}; correct {name}, or "
                    "store images inside it"
                )


@functools.lru_cache(maxsize=1)
def _content(path: Path, digest: str) -> ImageFile:
    """The file, in the order of the indices."""
    content = read_image_file(path)
    order = np.argsort(content.indices)
    labels = None if content.labels is None else content.labels[order]
    return ImageFile(content.images[order], labels, content.indices[order], content.provenance)
