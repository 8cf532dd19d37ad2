"""SOAP's MNIST classifier (Shi et al. 2021): the encoder of a convolutional auto-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from purifiers.classifiers._layered import Layered
from purifiers.core.errors import UserError
from purifiers.core.ranges import Count
from purifiers.core.traits import ClassifierTraits


class SoapCae(Layered):
    """Conv 3x3 with stride 2 twice, FC, and a linear layer for the labels; optionally a decoder.

    The decoder, for reconstruction, mirrors the first three layers with transposed convolutions and
    ends with a sigmoid. 3,241,354 parameters on MNIST without it, 6,474,507 with it
    (`Mishne-Lab/SOAP`, ``ConvAutoEncoder``). Initial weights are PyTorch's, as upstream.

    Args:
        shape: (C, H, W) of the images. Sides that are not multiples of 4 are reconstructed at the
            next multiple and cropped at the bottom and the right.
        classes: number of classes.
        task: ``reconstruction``, or ``label_consistency``, which needs no decoder; see
            :class:`purifiers.core.self_supervision.Joint`.
        width: channels of the first convolution, half those of the second; 32 upstream.
        units: of the fully connected layer; 1024 upstream.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: another task.
    """

    traits = ClassifierTraits(version=1, budget=("width", "units"))

    TAPS: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "dense1")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        task: Literal["label_consistency", "reconstruction"] = "label_consistency",
        width: Count = 32,
        units: Count = 1024,
    ) -> None:
        super().__init__(shape, classes)
        self.task = task
        channels, height, image_width = self.shape
        small = (2 * width, -(-height // 4), -(-image_width // 4))
        flat = small[0] * small[1] * small[2]
        self.conv1 = nn.Sequential(nn.Conv2d(channels, width, 3, 2, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.ReLU())
        self.dense1 = nn.Sequential(nn.Flatten(), nn.Linear(flat, units), nn.ReLU())
        self.head = nn.Linear(units, classes)
        if task == "reconstruction":
            self.decoder = nn.Sequential(
                nn.Linear(units, flat),
                nn.ReLU(),
                nn.Unflatten(1, small),
                nn.ConvTranspose2d(2 * width, width, 3, 2, padding=1, output_padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(width, channels, 3, 2, padding=1, output_padding=1),
            )

    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and reconstructed images (n, C, H, W).

        Raises:
            UserError: the network was built without its decoder.
        """
        if self.task != "reconstruction":
            raise UserError(
                f"soap_cae: task is {self.task!r}, for which there is no decoder; "
                "set task to 'reconstruction'"
            )
        hidden = self.features(images, ("dense1",))[0].flatten(1)
        reconstruction = torch.sigmoid(self.decoder(hidden))
        return self.head(hidden), reconstruction[..., : images.shape[2], : images.shape[3]]
