"""VGG with batch normalisation: sizes and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from purifiers.classifiers.vgg import STAGES, Vgg
from purifiers.core.component import build
from purifiers.core.errors import UserError


def parameters(depth: int, channels: int, classes: int, width: int = 64) -> int:
    """Convolutions 3 x 3 x in x out + out, two per channel of batch normalisation, the head."""
    total, inputs = 0, channels
    for outputs, count in zip((1, 2, 4, 8, 8), STAGES[depth], strict=True):
        for _ in range(count):
            total += 9 * inputs * outputs * width + 3 * outputs * width
            inputs = outputs * width
    return total + inputs * classes + classes


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_parameters(depth: int) -> None:
    with torch.device("meta"):
        model = Vgg((3, 32, 32), 10, depth=depth)
    assert sum(p.numel() for p in model.parameters()) == parameters(depth, 3, 10)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth - 2  # one linear layer instead of three


def test_vgg_19_bn_of_cifar() -> None:
    with torch.device("meta"):
        model = Vgg((3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 20_040_522


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 16, 16), (3, 64, 64), (1, 5, 7)])
@pytest.mark.parametrize("first_stride", [1, 2])
def test_any_size(shape: tuple[int, int, int], first_stride: int) -> None:
    model = build(Vgg, shape, 10, depth=11, width=4, first_stride=first_stride).eval()
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 10)
    for name, found in zip(model.TAPS, model.features(images, model.TAPS), strict=True):
        assert found.shape[1] == model.channels[name]


def test_stages_halve_the_image() -> None:
    model = Vgg((3, 32, 32), 10, depth=11, width=4).eval()
    sides = [tap.shape[-1] for tap in model.features(torch.rand(1, 3, 32, 32), model.TAPS)]
    assert sides == [16, 8, 4, 2, 1]


def test_the_head_reads_the_mean_of_the_deepest_stage() -> None:
    model = Vgg((3, 64, 64), 10, depth=11, width=4).eval()
    images = torch.rand(2, 3, 64, 64)
    (deepest,) = model.features(images, ["stage5"])
    assert deepest.shape == (2, 32, 2, 2)
    assert torch.allclose(model(images), model.head(deepest.mean(dim=(2, 3))))


def test_wrong_depth_and_tap() -> None:
    with pytest.raises(UserError, match="choose one of 11, 13, 16, 19"):
        Vgg((3, 32, 32), 10, depth=18)
    with pytest.raises(UserError, match="did you mean 'stage4'"):
        Vgg((3, 32, 32), 10, depth=11, width=4).features(torch.rand(1, 3, 32, 32), ["stage44"])
