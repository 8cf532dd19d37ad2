"""Common corruptions, CIFAR-10-C (Hendrycks and Dietterich 2019): image changes, no adversary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.attacks._corruptions import MADE
from purifiers.core.component import Attack
from purifiers.core.data import data_root
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.noise import derive_seed
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits, Note

FOLDER = "CIFAR-10-C"
NOT_MADE = ("fog", "frost", "motion_blur", "snow", "spatter")
CORRUPTIONS = tuple(sorted({*MADE, *NOT_MADE}))
SEVERITIES = 5
SOURCES = ("made", "files")


class CommonCorruption(Attack):
    """Apply one corruption at one severity; neither the model nor the label has an influence.

    ``files`` reads ``CIFAR-10-C/<corruption>.npy`` below the data folder: images uint8 (50000, 32,
    32, 3), the 10,000 test images of CIFAR-10 in their order at severity 1, then 2 and so on.
    ``labels.npy`` must match the labels. Images of another order or another data set are therefore
    refused.

    ``made`` applies the formula behind those files to any images, including grey ones. It truncates
    the values to whole 255ths, as the files do. An image's random numbers depend on the seed, its
    index, the corruption and the severity.

    Args:
        corruption: one of CIFAR-10-C's 19.
        severity: 1 to 5.
        source: ``made`` or ``files``.

    Defaults: our choice.

    Raises:
        UserError: an unknown corruption, severity or source; a corruption that cannot be computed
            here; files that are missing or do not match the images.
    """

    traits = AttackTraits(
        version=1,
        budget=("source",),  # a scale with stand-in images cannot use the files of CIFAR-10-C
        passes="0",  # uses no network
        norm="corruption",
        model_free=True,  # checks for weak attacks do not apply
        float32_only=True,
        refused=(
            Note(
                when={
                    "source": ("made",),
                    "corruption": ("fog", "frost", "motion_blur", "snow", "spatter"),
                },
                text=(
                    "no library here makes {corruption} in a few lines; "
                    "it needs CIFAR-10-C/{corruption}.npy"
                ),
            ),
        ),
        remarks=(
            Note(
                when={"source": ("made",)},
                text=(
                    "corrupted here with the formulas and constants of CIFAR-10-C, "
                    "not its own files"
                ),
            ),
        ),
    )

    def __init__(
        self, *, corruption: str = "gaussian_noise", severity: int = 5, source: str = "made"
    ) -> None:
        if corruption not in CORRUPTIONS:
            hint = did_you_mean(corruption, CORRUPTIONS)
            raise UserError(f"common_corruption: there is no corruption {corruption!r}{hint}")
        if severity not in range(1, SEVERITIES + 1):
            raise UserError(f"common_corruption: severity is {severity}: choose one of 1 to 5")
        if source not in SOURCES:
            raise UserError(f"common_corruption: source is {source!r}: choose made or files")
        if source == "made" and corruption not in MADE:
            reason = self.traits.refused[0].text.format(corruption=corruption)
            raise UserError(f"common_corruption: {reason} and source: files")
        self.corruption, self.severity, self.source = corruption, severity, source

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """Corrupted images, float32 (n, C, H, W) in whole 255ths."""
        if not len(images):
            return images
        if self.source == "files":
            pixels = self._read(images, labels, indices)
        else:
            rows = zip(images.cpu().double().numpy(), indices.tolist(), strict=True)
            pixels = np.stack([self._make(image, seed, index) for image, index in rows])
        return torch.from_numpy(pixels).to(images.device).float() / 255

    def _make(self, image: npt.NDArray, seed: int, index: int) -> npt.NDArray:
        corrupt, constants = MADE[self.corruption]
        state = np.random.MT19937(derive_seed(seed, index, f"{self.corruption} {self.severity}"))
        # RandomState, because NumPy guarantees that its stream never changes
        random = np.random.RandomState(state)
        corrupted = corrupt(image.transpose(1, 2, 0), constants[self.severity - 1], random)
        # truncated, as in CIFAR-10-C; the tiny addend protects whole numbers from rounding errors
        truncated = np.floor(255 * np.clip(corrupted, 0, 1) + 1e-6)
        return truncated.astype(np.uint8).transpose(2, 0, 1)

    def _read(self, images: Tensor, labels: Tensor, indices: Tensor) -> npt.NDArray:
        stored, official_labels = (self._open(name) for name in (self.corruption, "labels"))
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
                "which must be CIFAR-10's test images in the official order; set source: made "
                "for other images"
            )
        return stored[where + n_images * (self.severity - 1)].transpose(0, 3, 1, 2)

    def _open(self, name: str) -> npt.NDArray:
        path = data_root() / FOLDER / f"{name}.npy"
        if not path.exists():
            raise UserError(
                f"{path} is missing: unpack CIFAR-10-C.tar (Zenodo record 2535967) into the data "
                "folder, or set source: made"
            )
        stored = np.load(path, mmap_mode="r")
        dimensions = 1 if name == "labels" else 4
        if stored.dtype != np.uint8 or stored.ndim != dimensions or len(stored) % SEVERITIES:
            raise UserError(
                f"{path}: {stored.dtype} {stored.shape} is not a file of CIFAR-10-C; "
                "unpack CIFAR-10-C.tar again"
            )
        return stored
