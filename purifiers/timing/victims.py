"""Attacked networks and their images."""

from __future__ import annotations

import copy
import importlib.resources
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.core import registry
from purifiers.core.component import Method, default_indices, frozen
from purifiers.core.data import data_root
from purifiers.core.noise import normal
from purifiers.core.training_images import to_float
from purifiers.core.traits import MethodTraits

CLASSES = 10
JUDGE_DRAWS = 21  # odd, so that there is always a majority


@dataclass(frozen=True)
class Victim:
    """A network and the images on which it is attacked.

    Attributes:
        network: in evaluation mode, with trainable parameters; libraries get copies.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        eps: L-infinity radius of PGD, MIM and APGD on the [0, 1] scale.
        cw_rate: learning rate of C&W.
        data: "" or how the images differ from the official ones.
        noise: standard deviation of the random defence in front of the network; 0 for none.
    """

    name: str
    network: nn.Module
    images: Tensor
    labels: Tensor
    eps: float
    cw_rate: float
    data: str
    noise: float = 0.0

    @property
    def step_size(self) -> float:
        """Step size of PGD and MIM (our choice)."""
        return self.eps / 4

    def first(self, count: int) -> Victim:
        """The same victim with the first ``count`` images."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def defended(self) -> Victim:
        """The same victim behind a random defence: noise as large as the attack (our choice)."""
        return replace(self, noise=self.eps)

    def frozen(self) -> nn.Module:
        """A copy with frozen parameters, as a careful user would attack it."""
        return frozen(self.as_is())

    def as_is(self) -> nn.Module:
        """A copy with trainable parameters, as a training returns it."""
        module = copy.deepcopy(self.network).eval()
        return Noisy(module, self.noise).eval() if self.noise else module

    @torch.no_grad()
    def kept(self, images: Tensor) -> Tensor:
        """Select the images (n,) that are classified correctly, in plain float32 for every library.

        Behind the random defence the majority of the same 21 draws decides.
        """
        judge = self.frozen()
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            torch.manual_seed(0)
            draws = [judge(images).argmax(1) == self.labels for _ in range(self._draws)]
        return torch.stack(draws).float().mean(dim=0) > 0.5

    @property
    def _draws(self) -> int:
        return JUDGE_DRAWS if self.noise else 1


class Noisy(nn.Module):
    """A network behind Gaussian noise: the random defence for the other libraries."""

    def __init__(self, network: nn.Module, deviation: float) -> None:
        super().__init__()
        self.network = network
        self.deviation = deviation

    def forward(self, images: Tensor) -> Tensor:
        noise = self.deviation * torch.randn_like(images)
        return self.network((images + noise).clamp(0.0, 1.0))


class GaussianNoise(Method):
    """The same random defence as a purifier of the suite, with noise per image index."""

    traits = MethodTraits(version=1, random=True)

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def purify(self, images: Tensor, seed: int = 0, indices: Any = None) -> Tensor:
        where = default_indices(images, indices)
        noise = normal(seed, where, images.shape[1:], tag="timing").to(images.device)
        return (images + self.deviation * noise).clamp(0.0, 1.0)


def mnist(count: int, device: str) -> Victim:
    """A small convolutional network, trained here on real MNIST in seconds.

    eps .07 leaves about half of the images unbroken. C&W's usual rate .01 would hardly move the
    black pixels in 50 steps.

    Raises:
        UserError: the data are missing and cannot be downloaded.
    """
    images, labels, note = _test_images("mnist", count, device)
    network = _trained(device)
    return Victim("mnist", network, images, labels, eps=0.07, cw_rate=0.1, data=note)


def cifar10(count: int, device: str) -> Victim:
    """The ResNet-18 of AutoAttack's package: accurate, not robust.

    8/255 breaks all of its images; .5/255 breaks about half of them, so that libraries can differ.

    Raises:
        UserError: the data are missing and cannot be downloaded.
    """
    from pyautoattack.examples.resnet import ResNet18

    images, labels, note = _test_images("cifar10", count, device)
    network = ResNet18()
    weights = importlib.resources.files("pyautoattack.examples").joinpath("model_test.pt")
    with weights.open("rb") as file:
        network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    network = network.eval().to(device)
    return Victim("cifar10", network, images, labels, eps=0.5 / 255, cw_rate=0.01, data=note)


def _test_images(name: str, count: int, device: str) -> tuple[Tensor, Tensor, str]:
    dataset = registry.load("dataset", name)()
    pixels, labels = dataset.load("test", data_root())
    note = dataset.source(data_root()).note
    return to_float(pixels[:count], device), torch.from_numpy(labels[:count]).to(device), note


def _trained(device: str, width: int = 16, count: int = 15_000) -> nn.Module:
    """Three convolutions with BatchNorm and a linear layer after one pass of Adam (our choice)."""
    pixels, labels = registry.load("dataset", "mnist")().load("train", data_root())
    images = to_float(pixels[:count])
    targets = torch.from_numpy(labels[:count])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        inputs = 1
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            inputs = outputs
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 49, CLASSES))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for rows in torch.randperm(len(images)).split(128):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(images[rows]), targets[rows]).backward()
            optimizer.step()
    return network.eval().to(device)
