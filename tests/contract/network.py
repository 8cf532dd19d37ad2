"""A user's network, for the classifier ``file``."""

from torch import nn


def make(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions, average pooling, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
