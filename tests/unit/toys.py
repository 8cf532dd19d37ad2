"""Problems small enough to solve by hand: a classifier of 8x8 images and a linear model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier, frozen

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
INDICES = torch.tensor([7, 3, 900, 4, 12, 0])
"""Labels and indices of the fixture ``images``."""


class Toy(Classifier):
    """A convolution, the mean over all pixels and a linear layer.

    Args:
        regularised: with BatchNorm before the activation and dropout before the linear layer.
    """

    def __init__(self, regularised: bool = False) -> None:
        super().__init__(SHAPE, 3)
        self.convolution = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if regularised else nn.Identity()
        self.dropout = nn.Dropout(0.5) if regularised else nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.convolution(images)))
        return self.head(self.dropout(hidden.mean(dim=(2, 3))))


def toy(seed: int = 0, regularised: bool = False) -> Toy:
    """A frozen classifier with large random weights."""
    torch.manual_seed(seed)
    classifier = Toy(regularised)
    for parameter in classifier.parameters():
        parameter.data.mul_(4.0)
    frozen(classifier)
    return classifier


@dataclass(frozen=True)
class LinearProblem:
    """A binary linear model and six images.

    Attributes:
        weights: (1, 2, 5, 5); the logits are minus and plus the score ``(images * weights).sum()``.
        images: (6, 2, 5, 5); some pixels touch 0 and 1.
        labels: 0 or 1.
    """

    weights: Tensor
    images: Tensor
    labels: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return binary(self.weights, images)

    def optimum(self, eps: float) -> Tensor:
        """The corner of the L-infinity ball that the model misclassifies most clearly."""
        away = torch.where(self.labels == 1, -1.0, 1.0).view(-1, 1, 1, 1)
        return (self.images + eps * away * self.weights.sign()).clamp(0, 1)


def binary(weights: Tensor, images: Tensor) -> Tensor:
    """Logits (n, 2) of a linear model without a bias."""
    score = (images * weights).sum(dim=(1, 2, 3))
    return torch.stack([-score, score], dim=1)


def linear_problem() -> LinearProblem:
    """Random weights and images, always the same."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 2, 5, 5, generator=generator)
    images = torch.rand(6, 2, 5, 5, generator=generator)
    images[0].clamp_(0.02, 0.05)
    images[1].clamp_(0.97, 1.0)
    return LinearProblem(weights, images, torch.tensor([0, 1, 0, 1, 1, 0]))
