"""CIFAR-10-C's own images (Hendrycks and Dietterich 2019): no adversary, and no other images."""

from __future__ import annotations

import torch
from torch import Tensor

from purifiers.attacks import _cifar10_c
from purifiers.core.choices import Corruption
from purifiers.core.component import Attack
from purifiers.core.ranges import Severity
from purifiers.core.target import Target
from purifiers.core.traits import AttackTraits, Layout


class Cifar10C(Attack):
    """Replace test images of CIFAR-10 by the official files' images of the same indices.

    The images are those of robustbench's ``load_cifar10c``, which its leaderboard of corruptions is
    measured on. They come from ``CIFAR-10-C/<corruption>.npy`` below the data folder and are not
    downloaded. ``common_corruption`` corrupts other images too.

    Args:
        corruption: one of CIFAR-10-C's 19; the leaderboard takes the mean over 15 of them.
        severity: 1 to 5.

    Defaults: our choice.

    Raises:
        UserError: an unknown corruption or severity; files that are missing or do not match the
            images.
    """

    traits = AttackTraits(
        version=1,
        passes="0",  # uses no network
        norm="corruption",
        model_free=True,  # checks for weak attacks do not apply
        float32_only=True,
        images_of="cifar10",
        reads=(
            Layout(
                files=("CIFAR-10-C/{corruption}.npy", "CIFAR-10-C/labels.npy"),
                origin=(
                    "unpack CIFAR-10-C.tar (https://zenodo.org/records/2535967) into the data "
                    "folder"
                ),
            ),
        ),
    )

    def __init__(
        self, *, corruption: Corruption = "gaussian_noise", severity: Severity = 5
    ) -> None:
        self.corruption, self.severity = corruption, severity

    def perturb(
        self, target: Target, images: Tensor, labels: Tensor, seed: int, indices: Tensor
    ) -> Tensor:
        """The files' images, float32 (n, 3, 32, 32) in whole 255ths."""
        if not len(images):
            return images
        pixels = _cifar10_c.read(
            self.corruption,
            self.severity,
            images,
            labels,
            indices,
            origin=self.traits.reads[0].origin,
            remedy="use common_corruption",
        )
        return torch.from_numpy(pixels).to(images.device).float() / 255
