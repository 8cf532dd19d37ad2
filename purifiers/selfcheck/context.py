"""What the sections share: the device, the size of the work, and a small trained classifier."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.component import frozen
from purifiers.core.sources import PACKAGE
from purifiers.core.training_images import to_float
from purifiers.datasets.digits import Digits

SHAPE, CLASSES = (1, 16, 16), 10
EPOCHS, BATCH = 4, 50


@dataclass(frozen=True)
class Size:
    """Amount of work.

    Attributes:
        images: digits that are attacked.
        steps: of the attacks whose strength is compared.
        rounds: timed rounds, after one that warms up.
        slack: factor on the limits of times; small networks on a busy processor are slow.
        victims: networks of :mod:`purifiers.timing.victims` that are attacked beside the digits'.
        networks: keys of networks whose throughput is measured.
        attacks: keys of attacks that are timed.
        precisions: of the throughput.
    """

    images: int
    steps: int
    rounds: int
    slack: float
    victims: tuple[str, ...]
    networks: tuple[str, ...]
    attacks: tuple[str, ...]
    precisions: tuple[str, ...]


_PAPER_NETWORKS = (
    "wide_resnet(depth=34,first_stride=1,widen_factor=10)@3x32x32",
    "pixel_defend(blocks=5,filters=160,mixtures=10,scales=3)@3x32x32",
    "adv_ae(variant=mnist,width=32)@1x28x28",
    "advae_x(width=32)@1x28x28",
    "nrp(blocks=23,channels=64,generator=resg)@3x32x32",
    "defense_gan(latent=128,width=64)@3x32x32",
)
SIZES = {
    "tiny": Size(
        images=24,
        steps=8,
        rounds=1,
        slack=4.0,
        victims=(),
        networks=("advae_x(width=16)@1x16x16",),
        attacks=("pgd", "apgd", "cw_1", "deepfool"),
        precisions=("float32",),
    ),
    "full": Size(
        images=256,
        steps=50,
        rounds=3,
        slack=1.0,
        victims=("mnist", "cifar10"),
        networks=_PAPER_NETWORKS,
        attacks=("pgd", "deepfool", "cw_1", "apgd", "mim", "eot"),
        precisions=("float32", "bfloat16", "tf32"),
    ),
}
"""Size by name; our choice."""


@dataclass
class Context:
    """Device, size and classifier of a self-check.

    Attributes:
        device: ``cpu`` or ``cuda``.
        measured: what the sections add to ``selfcheck.json`` beside their lines.
        root: the repository.
    """

    device: str
    size: Size
    measured: dict[str, Any] = field(default_factory=dict)
    root: Path = PACKAGE.parent
    _memory: dict[Hashable, Any] = field(default_factory=dict)

    def remembered(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of ``compute``, which is called once per key."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    @functools.cached_property
    def classifier(self) -> nn.Module:
        """A small residual network trained on digits, frozen, on the CPU."""
        return trained_on_digits()

    def on(self, device: str) -> nn.Module:
        """A copy of the classifier on a device."""
        return frozen(copy.deepcopy(self.classifier)).to(device)

    def digits(self, count: int = 0) -> tuple[Tensor, Tensor]:
        """The first test images, float32 (n, 1, 16, 16), and labels, on the CPU."""
        pixels, labels = Digits().load("test", Path())
        first = slice(count or self.size.images)
        return to_float(pixels[first]), torch.from_numpy(labels[first])

    def correct(self, images: Tensor, labels: Tensor) -> int:
        """Number of images that the classifier classifies correctly, on the CPU in float32."""
        with torch.no_grad():
            return int((self.classifier(images.cpu()).argmax(1) == labels.cpu()).sum())


@functools.cache
def trained_on_digits() -> nn.Module:
    """A WRN-10-1 after a few epochs of Adam; the same weights at every call on one processor."""
    pixels, labels = Digits().load("train", Path())
    images, targets = to_float(pixels), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WideResnet(SHAPE, CLASSES, depth=10, widen_factor=1, first_stride=2).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for rows in torch.cat([torch.randperm(len(images)) for _ in range(EPOCHS)]).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(images[rows]), targets[rows]).backward()
            optimizer.step()
    return frozen(network)


def shrunk(parameters: dict[str, Any], small: Mapping[str, float]) -> dict[str, Any]:
    """Those of ``small`` that a component has as numbers, each at most its default."""
    return {
        name: type(parameters[name])(min(parameters[name], limit))
        for name, limit in small.items()
        if type(parameters.get(name)) in (int, float)
    }
