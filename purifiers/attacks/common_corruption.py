"""Common corruptions, CIFAR-10-C (Hendrycks and Dietterich 2019): image changes, no adversary."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.attacks import _cifar10_c
from purifiers.attacks._corruptions import MADE
from purifiers.core.choices import Corruption
from purifiers.core.component import Attack
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed
from purifiers.core.ranges import Severity
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits, Layout, Note


class CommonCorruption(Attack):
    """Apply one corruption at one severity; neither the model nor the label has an influence.

    ``files`` reads ``CIFAR-10-C/<corruption>.npy`` below the data folder, as the attack
    ``cifar10_c`` does. Images of another order or another data set are refused.

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
        reads=(
            Layout(
                files=("CIFAR-10-C/{corruption}.npy", "CIFAR-10-C/labels.npy"),
                when={"source": ("files",)},
                origin=(
                    "unpack CIFAR-10-C.tar (https://zenodo.org/records/2535967) into the data "
                    "folder"
                ),
            ),
        ),
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
        self,
        *,
        corruption: Corruption = "gaussian_noise",
        severity: Severity = 5,
        source: Literal["made", "files"] = "made",
    ) -> None:
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
            pixels = _cifar10_c.read(
                self.corruption,
                self.severity,
                images,
                labels,
                indices,
                origin=self.traits.reads[0].origin,
                remedy="set source: made",
            )
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
