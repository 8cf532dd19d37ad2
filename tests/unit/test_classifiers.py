"""Wide residual networks against published counts and a forward written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.errors import UserError


def count(**parameters) -> int:
    classes = parameters.pop("classes", 10)
    with torch.device("meta"):
        network = WideResnet((3, 32, 32), classes, **parameters)
    return sum(p.numel() for p in network.parameters())


def test_published_parameter_counts():
    assert count() == 46_160_474  # WRN-34-10, yaodongyu/TRADES
    assert count(depth=28, widen_factor=10) == 36_479_194  # WRN-28-10: 36.5 M in its paper
    assert count(depth=16, widen_factor=8) == 10_961_370  # WRN-16-8: 11.0 M
    assert count(depth=40, widen_factor=4) == 8_949_210  # WRN-40-4: 8.9 M
    assert count(classes=100) == 46_160_474 + 90 * 641


@pytest.mark.parametrize("depth", [4, 9, 12, 35])
def test_depth_is_checked(depth):
    with pytest.raises(UserError, match=f"depth is {depth}, but must be 6 n"):
        WideResnet((3, 32, 32), 10, depth=depth)


def test_shapes_of_the_taps():
    network = WideResnet((3, 32, 32), 10, depth=10, widen_factor=2).eval()
    with torch.no_grad():
        found = network.features(torch.rand(2, 3, 32, 32), network.TAPS)
    shapes = [tuple(tensor.shape[1:]) for tensor in found]
    assert shapes == [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)]
    assert network.channels == {"conv1": 16, "stage1": 32, "stage2": 64, "stage3": 128}
    strided = WideResnet((1, 16, 16), 10, depth=10, widen_factor=1, first_stride=2).eval()
    assert strided.features(torch.rand(1, 1, 16, 16), ("stage3",))[0].shape == (1, 64, 2, 2)


def norm(name: str, x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))


def test_forward_by_hand():
    """Pre-activation; a shortcut convolution sees the activated input; taps are raw outputs."""
    torch.manual_seed(0)
    network = WideResnet((3, 8, 8), 4, depth=16, widen_factor=2).train()
    network(torch.rand(32, 3, 8, 8))  # so that the running statistics say something
    state = network.eval().state_dict()
    images = torch.rand(3, 3, 8, 8)
    x = F.conv2d(images, state["conv1.weight"], padding=1)
    taps = [x]
    for stage, stride in (("stage1", 1), ("stage2", 2), ("stage3", 2)):
        for block in range(2):
            name, step = f"{stage}.{block}", stride if block == 0 else 1
            active = F.relu(norm(f"{name}.norm1", x, state))
            if block == 0:
                x = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=step)
            hidden = F.conv2d(active, state[f"{name}.conv1.weight"], stride=step, padding=1)
            hidden = F.relu(norm(f"{name}.norm2", hidden, state))
            x = x + F.conv2d(hidden, state[f"{name}.conv2.weight"], padding=1)
        taps.append(x)
    pooled = F.relu(norm("norm", x, state)).mean(dim=(2, 3))
    logits = pooled @ state["head.weight"].T + state["head.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits)
        for found, expected in zip(network.features(images, network.TAPS), taps, strict=True):
            torch.testing.assert_close(found, expected)


def test_initialisation():
    """He's, over fan-out: standard deviation sqrt(2 / (9 * 64))."""
    torch.manual_seed(0)
    network = WideResnet((3, 32, 32), 10, depth=10, widen_factor=1)
    weight = network.stage3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert not network.head.bias.any()
