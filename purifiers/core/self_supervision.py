"""Self-supervised tasks of SOAP (Shi et al. 2021), shared by its training and its purifier.

A classifier that is trained with a task may have a head for it: :class:`Joint`. Label consistency
needs no head, so that any classifier can be trained with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.errors import UserError
from purifiers.core.logits import queried
from purifiers.core.memory_layout import as_taken_by
from purifiers.core.noise import generator, normal, uniform

ROTATIONS = 4  # by 0, 90, 180 and 270 degrees
SMALLEST = 24 / 32
"""Shortest side of a random crop, as a share of the image's (`Mishne-Lab/SOAP`: 24 of 32)."""
LARGEST_OFFSET = 8 / 32
"""Largest distance of a random crop from the upper left corner (likewise)."""
NOISE = {"label_consistency": 0.1, "reconstruction": 0.5, "rotation": 0.1}
"""Standard deviation of the noise on training images (likewise), clipped to [0, 1] afterwards."""


@runtime_checkable
class Joint(Protocol):
    """A classifier with a head for an auxiliary task.

    Attributes:
        task: see :data:`purifiers.core.choices.Task`; ``label_consistency`` has no head.
    """

    task: str

    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and the output of the head.

        The head returns images of the same shape (reconstruction) or logits (n, 4) of the four
        rotations.
        """


def head_of(classifier: object, task: str, owner: str) -> Joint | None:
    """``classifier``, checked to have a head for ``task``; None if the task needs no head.

    Args:
        owner: the component, for the error message.

    Raises:
        UserError: the classifier has no such head.
    """
    if task == "label_consistency":
        return None
    if not isinstance(classifier, Joint) or classifier.task != task:
        raise UserError(
            f"{owner}: {type(classifier).__name__} has no head for {task}: choose a classifier "
            f"with `task: {task}`, such as soap_cae or soap_resnet, trained with `soap`, or take "
            "task label_consistency, which needs no head"
        )
    return classifier


@dataclass(frozen=True)
class Views:
    """A second view of each image: a crop at full size, possibly mirrored and with noise.

    Attributes:
        boxes: top, left, height and width of the crops as shares of the sides, (n, 4).
        mirrored: whether each crop is mirrored, bool (n,).
        noise: noise that is added to the whole image before clipping and cropping, (n, C, H, W);
            None: no noise.
    """

    boxes: Tensor
    mirrored: Tensor
    noise: Tensor | None = None

    @classmethod
    def fixed(cls, images: Tensor) -> Views:
        """Upstream's second view at purification: mirrored, 28 of 32 pixels from the middle."""
        box = torch.tensor([2 / 32, 2 / 32, 28 / 32, 28 / 32]).expand(len(images), 4)
        return cls(box, torch.ones(len(images), dtype=torch.bool))

    @classmethod
    def drawn(cls, images: Tensor, seed: int, indices: Tensor | None, tag: str) -> Views:
        """Random views, as upstream draws them once for a whole batch.

        A view is mirrored or not. Its offset is at most ``LARGEST_OFFSET``, and its side is between
        ``SMALLEST`` and the rest of the image. An image's view depends on (seed, index, tag) alone.
        Without indices it depends on (seed, tag) and the position in the batch, which is cheaper
        and sufficient for training.
        """
        if indices is None:
            draw = generator(seed, tag)
            draws = torch.rand(len(images), 5, generator=draw)
            noise = torch.randn(images.shape, generator=draw)
        else:
            draws = uniform(seed, indices, (5,), tag=f"{tag} view")
            noise = normal(seed, indices, images.shape[1:], tag=f"{tag} noise")
        offset = LARGEST_OFFSET * draws[:, :2]
        side = SMALLEST + (1.0 - offset - SMALLEST) * draws[:, 2:4]
        scaled = (NOISE["label_consistency"] * noise).to(images.device)
        return cls(torch.cat([offset, side], dim=1), draws[:, 4] < 0.5, scaled)

    def __call__(self, images: Tensor) -> Tensor:
        """The views (n, C, H, W), differentiable.

        Nearest-neighbour interpolation, as upstream's: pixel i of a crop that begins at pixel t
        and has the share s of the side is the source's pixel floor(t + s i).
        """
        if self.noise is not None:
            images = (images + self.noise).clamp(0.0, 1.0)
        height, width = images.shape[2:]
        top, left, tall, wide = self.boxes.unbind(dim=1)
        rows, columns = _sources(top, tall, height), _sources(left, wide, width)
        # the image is mirrored before it is cropped
        columns = torch.where(self.mirrored[:, None], width - 1 - columns, columns)
        # centres of the pixels, where coordinates run from -1 to 1
        across = ((2 * columns + 1) / width - 1)[:, None, :].expand(-1, height, -1)
        down = ((2 * rows + 1) / height - 1)[:, :, None].expand(-1, -1, width)
        grid = torch.stack([across, down], dim=3).to(images.device, images.dtype)
        return functional.grid_sample(
            images, grid, mode="nearest", padding_mode="border", align_corners=False
        )


def _sources(offset: Tensor, side: Tensor, count: int) -> Tensor:
    """Source pixel of each of ``count`` pixels along a side, (n, count).

    Args:
        offset, side: of the crops as shares of the image's side, (n,).
    """
    steps = torch.arange(count, dtype=torch.float64, device=offset.device)
    positions = offset.double()[:, None] * count + side.double()[:, None] * steps
    return positions.floor().clamp_(max=count - 1)


def rotated(images: Tensor) -> Tensor:
    """All images rotated by 0 degrees, then all by 90, 180 and 270 degrees, (4 n, C, H, W).

    Raises:
        UserError: the images are not square.
    """
    if images.shape[2] != images.shape[3]:
        raise UserError(f"rotation needs square images, got {images.shape[2]}x{images.shape[3]}")
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(ROTATIONS)])


def auxiliary_losses(
    classifier: Callable[[Tensor], Tensor], head: Joint | None, images: Tensor, views: Views | None
) -> Tensor:
    """Auxiliary loss of each image (n,) at purification, never negative.

    - Reconstruction: mean squared error of the pixels.
    - Rotation: squared error of the softmax, averaged over the four classes and the four rotations
      (upstream's ``rotate_criterion_l2``).
    - Label consistency: mean squared difference of the logits of an image and of its view.

    Args:
        head: result of :func:`head_of`.
        views: views of the images, used by label consistency only.
    """
    if head is None:
        assert views is not None
        logits, other = (queried(classifier, x) for x in (images, views(images)))
        return (logits - other).square().mean(dim=1)
    if head.task == "reconstruction":
        return (head.joint(as_taken_by(head, images))[1] - images).square().flatten(1).mean(dim=1)
    turned = as_taken_by(head, rotated(images))
    predicted = torch.softmax(head.joint(turned)[1], dim=1).view(ROTATIONS, -1, ROTATIONS)
    truth = torch.eye(ROTATIONS, dtype=predicted.dtype, device=predicted.device)[:, None]
    return (predicted - truth).square().mean(dim=2).mean(dim=0)
