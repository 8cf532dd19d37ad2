"""ADP's small classifiers against Figure 6 of the supplement: sizes, layers and the declaration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from purifiers.classifiers.adp_cnn import AdpCnn
from purifiers.classifiers.mlp import Mlp
from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.errors import UserError

PAPER = Path(__file__).resolve().parents[2] / "benchmarks/adp/paper.yaml"
MNIST = (1, 28, 28)
# 784-256-128-10, and two 5x5 convolutions of 32 and 64 channels before 1024 and 10, with biases
COUNTS = {
    "mlp": 785 * 256 + 257 * 128 + 129 * 10,
    "fashion_cnn": 26 * 32 + (25 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 1024 + 1025 * 10,
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_declared_networks_have_the_figures_sizes(name):
    recipe = yaml.safe_load(PAPER.read_text())["classifiers"][name]
    classifier = build(registry.load("classifier", recipe.pop("component")), MNIST, 10, **recipe)
    assert sum(p.numel() for p in classifier.parameters()) == COUNTS[name]


def test_layers_of_the_fully_connected_network():
    net, images = Mlp(MNIST, 10, width=6).eval(), torch.rand(3, *MNIST)
    first, second = (part[1] for part in (net.dense1, net.dense2))
    hidden = F.relu(F.linear(images.flatten(1), first.weight, first.bias))
    hidden = F.relu(F.linear(hidden, second.weight, second.bias))
    torch.testing.assert_close(net(images), F.linear(hidden, net.head.weight, net.head.bias))


def test_layers_of_the_convolutional_network():
    net, images = AdpCnn(MNIST, 10, width=2, units=7).eval(), torch.rand(3, *MNIST)
    first, second = (
        next(layer for layer in part if isinstance(layer, nn.Conv2d))
        for part in (net.conv1, net.conv2)
    )
    hidden = F.max_pool2d(F.relu(F.conv2d(images, first.weight, first.bias, padding=2)), 2)
    hidden = F.max_pool2d(F.relu(F.conv2d(hidden, second.weight, second.bias, padding=2)), 2)
    dense = net.dense1[1]
    hidden = F.relu(F.linear(hidden.flatten(1), dense.weight, dense.bias))
    torch.testing.assert_close(net(images), F.linear(hidden, net.head.weight, net.head.bias))


def test_images_too_small_for_both_poolings():
    with pytest.raises(UserError, match="3x3 are too small"):
        AdpCnn((1, 3, 3), 10)
