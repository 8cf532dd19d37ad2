"""Discriminator of AID-Purifier, in the architecture of the paper and of the authors' code."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def pooled(features: Sequence[Tensor]) -> list[Tensor]:
    """Average each feature map over its pixels (section 3.1): (n, c, h, w) to (n, c)."""
    return [feature.mean(dim=(2, 3)) for feature in features]


class PaperDiscriminator(nn.Module):
    """Two branches, concatenation and a head (Table 5), without batch normalisation.

    Args:
        channels: channels of the tapped representations, in order.
        width: units of the hidden layers; 1024 in Table 5.
        extra_layers: linear layers added before and after the concatenation; Appendix A.2 has one
            for CIFAR-10, CIFAR-100 and TinyImageNet.

    Shapes: pooled features (n, channels[i]) each to one logit per image (n,), high for adversarial.
    """

    def __init__(self, channels: Sequence[int], width: int, extra_layers: int) -> None:
        super().__init__()
        branch_depth = 2 + extra_layers
        self.branches = nn.ModuleList(
            _layers([count] + [width] * branch_depth, norm=False) for count in channels
        )
        head = [width * len(channels)] + [width] * (1 + extra_layers) + [width // 2]
        self.head = nn.Sequential(_layers(head, norm=False), nn.Linear(width // 2, 1))
        _initialise(self, self.head[-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        encoded = [branch(f) for branch, f in zip(self.branches, features, strict=True)]
        return self.head(torch.cat(encoded, dim=1)).squeeze(1)


class UpstreamDiscriminator(nn.Module):
    """One branch per tap of the classifier, with batch normalisation (`yelobean/AIDPurifier`).

    Branches of unused taps get zeros. Every linear layer but the last is followed by batch
    normalisation.

    Args:
        channels: channels of every tap of the classifier, by name.
        taps: the taps in use.
        width: units of the hidden layers; 1024 upstream.
        extra_layers: 1 for the deeper network, which upstream uses for all data sets but SVHN.

    Shapes: as :class:`PaperDiscriminator`.
    """

    def __init__(
        self, channels: Mapping[str, int], taps: Sequence[str], width: int, extra_layers: int
    ) -> None:
        super().__init__()
        self.taps, self.channels = tuple(taps), dict(channels)
        depth = 1 + extra_layers
        self.branches = nn.ModuleDict(
            {
                _key(name): _layers([count] + [width] * depth, norm=True)
                for name, count in channels.items()
            }
        )
        head = [width * len(channels), 2 * width, width] + [width // 2] * extra_layers
        self.head = nn.Sequential(_layers(head, norm=True), nn.Linear(head[-1], 1))
        _initialise(self, self.head[-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        by_tap = dict(zip(self.taps, features, strict=True))
        rows = features[0].shape[0]
        encoded = [
            self.branches[_key(name)](
                by_tap[name] if name in by_tap else features[0].new_zeros(rows, count)
            )
            for name, count in self.channels.items()
        ]
        return self.head(torch.cat(encoded, dim=1)).squeeze(1)


def _initialise(network: nn.Module, last: nn.Module) -> None:
    """Draw He's initial weights over fan-in, as `yelobean/AIDPurifier`; zero bias in ``last``.

    With torch's default, whose weights are 2.45 times smaller, the signal of the form without
    normalisation vanishes, and the discriminator does not learn at the paper's rate.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.bias)


def _key(tap: str) -> str:
    # names in a ModuleDict must not contain a dot
    return tap.replace(".", "/")


def _layers(widths: Sequence[int], norm: bool) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        modules.append(nn.Linear(inputs, outputs))
        if norm:
            modules.append(nn.BatchNorm1d(outputs))
        modules.append(nn.ReLU())
    return nn.Sequential(*modules)
