"""A small trained network that the unit tests attack."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Victim:
    """A classifier of 8x8 digits in evaluation mode, with held-out images it mostly gets right."""

    model: nn.Module
    images: Tensor
    labels: Tensor

    def accuracy(self, images: Tensor) -> float:
        return float(self.correct(images).float().mean())

    def correct(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(images).argmax(dim=1) == self.labels


@pytest.fixture(scope="session")
def victim() -> Victim:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            for rows in torch.randperm(1500).split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    return Victim(model, images[1500:1564], labels[1500:1564])
