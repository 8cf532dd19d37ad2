"""The auto-encoders of AdvAE and HGD: sizes, and their shortcuts beside the plain layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.methods._autoencoder import (
    Autoencoder,
    MnistAutoencoder,
    NormedConvolution,
    UpConvolution,
)
from purifiers.methods._unet import DenoisingUnet, PaperUnet, Unet

Make = Callable[[int, int, float], Autoencoder]
MAKERS: dict[str, Make] = {
    "mnist": MnistAutoencoder,
    "unet": lambda channels, width, _: Unet(channels, width),
    "unet_paper": lambda channels, width, _: PaperUnet(channels, width),
    "dunet": lambda channels, width, _: DenoisingUnet(channels, width),
}


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("mnist", 1, 28_481),
        ("unet", 3, 7_760_931),
        ("unet_paper", 3, 3_920_003),
        ("dunet", 3, 11_033_984),
    ],
)
def test_parameters(name: str, channels: int, expected: int) -> None:
    made = MAKERS[name](channels, 32, 0.01)
    assert sum(p.numel() for p in made.parameters()) == expected


def conv(*sizes: int) -> int:
    return sum(9 * a * b + b for a, b in itertools.pairwise(sizes))


def test_parameters_layer_by_layer() -> None:
    """Section 4.1's layer lists added up by hand."""
    assert conv(1, 32, 32, 32, 32) + 4 * 32 + conv(32, 1) == 28_481
    down, up = (3, 32, 64, 128, 256, 512), ((768, 256), (384, 128), (192, 64), (96, 32))
    assert conv(*down) + sum(conv(a, b) for a, b in up) + conv(32, 3) == 3_920_003
    twice = sum(conv(a, b, b) for a, b in itertools.pairwise(down))
    back = sum(conv(2 * b, b, b) + 4 * 2 * b * b + b for b in (256, 128, 64, 32))
    assert twice + back + conv(32, 3) == 7_760_931


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (16, 16), (7, 10)])
def test_images_in_images_out(name: str, channels: int, size: tuple[int, int]) -> None:
    made = MAKERS[name](channels, 4, 0.1)
    images = torch.rand(3, channels, *size)
    for mode in (True, False):
        assert made.train(mode)(images).shape == images.shape
    purified = made(images)
    assert purified.min() >= 0 and purified.max() <= 1
    torch.testing.assert_close(made(images[1:2]), purified[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_padding_is_invisible_where_sides_fit(name: str) -> None:
    made = MAKERS[name](1, 4, 0.1).eval()
    images = torch.rand(2, 1, 16, 32)
    torch.testing.assert_close(made.decoded(images), made.decode(images))


# The MNIST auto-encoder beside the layers as the paper lists them


def plain(made: MnistAutoencoder) -> nn.Sequential:
    def block(normed: NormedConvolution) -> list[nn.Module]:
        return [normed.convolution, normed.norm, nn.ReLU(), nn.MaxPool2d(2)]

    def up(layer: nn.Conv2d) -> nn.Conv2d:
        copied = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
        copied.weight, copied.bias = layer.weight, layer.bias
        return copied

    return nn.Sequential(
        *block(made.encoder1),
        *block(made.encoder2),
        *(made.decoder1, nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(up(made.decoder2), nn.ReLU(), nn.Upsample(scale_factor=2)),
        up(made.output),
    )


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("training", [True, False])
def test_mnist_layers_and_gradients_are_the_papers(channels: int, training: bool) -> None:
    """In double precision: outputs, input gradient, and gradients of every parameter."""
    torch.manual_seed(0)
    made = MnistAutoencoder(channels, 6, 0.1).double().train(training)
    for norm in (made.encoder1.norm, made.encoder2.norm):
        assert norm.running_mean is not None and norm.running_var is not None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.1, 0.5)
    other = plain(made)
    images = torch.rand(4, channels, 12, 8, dtype=torch.float64)

    def outcome(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = images.clone().requires_grad_(True)
        output = run(leaf)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        inputs = [leaf, *made.parameters()]
        return [output, *torch.autograd.grad((output * weights).sum(), inputs)]

    for mine, theirs in zip(outcome(made.decoded), outcome(other), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(made(images), torch.sigmoid(other(images)))


@pytest.mark.parametrize("outputs", [1, 3, 9])
def test_up_convolution(outputs: int) -> None:
    layer = UpConvolution(5, outputs).double()
    hidden = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    upsampled = functional.interpolate(hidden, scale_factor=2)
    expected = functional.conv2d(upsampled, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(hidden), expected)


def test_starts_as_keras() -> None:
    """Glorot's uniform limits, biases zero, BatchNorm with Keras's epsilon."""
    made = MnistAutoencoder(1, 32, 0.01)
    for part in made.modules():
        if isinstance(part, nn.Conv2d):
            limit = (6 / (9 * (part.in_channels + part.out_channels))) ** 0.5
            largest = float(part.weight.detach().abs().max())
            assert 0.9 * limit < largest <= limit
            assert part.bias is not None and not part.bias.any()
        if isinstance(part, nn.BatchNorm2d):
            assert (part.eps, part.momentum) == (1e-3, 0.01)


# Residual forms: what the last layer must give to leave an image alone


class Constant(nn.Module):
    """A last layer that gives the same whatever it is given."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, hidden: Any) -> Tensor:
        return self.given


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1


def test_unet_adds_the_image_before_the_sigmoid() -> None:
    made = Unet(3, 2)
    made.output = Constant(torch.zeros_like(IMAGES))  # type: ignore[assignment]
    torch.testing.assert_close(made(IMAGES), torch.sigmoid(IMAGES))
    made.output = Constant(torch.logit(IMAGES) - IMAGES)  # type: ignore[assignment]
    torch.testing.assert_close(made(IMAGES), IMAGES)


def test_papers_unet_adds_no_image() -> None:
    made = PaperUnet(3, 2)
    made.output = Constant(torch.zeros_like(IMAGES))  # type: ignore[assignment]
    assert torch.equal(made(IMAGES), torch.full_like(IMAGES, 0.5))


def test_dunet_adds_the_image_and_clamps_outside_of_training() -> None:
    made = DenoisingUnet(3, 2)
    made.output = Constant(torch.zeros_like(IMAGES))  # type: ignore[assignment]
    assert torch.equal(made(IMAGES), IMAGES)
    made.output = Constant(torch.full_like(IMAGES, 2.0))  # type: ignore[assignment]
    torch.testing.assert_close(made.train()(IMAGES), IMAGES + 2.0)
    assert torch.equal(made.eval()(IMAGES), torch.ones_like(IMAGES))


def corner_to_corner(hidden: Tensor, size: int) -> Tensor:
    """Bilinear upsampling of squares; pixel i of the result is at i (n - 1) / (size - 1)."""
    count = hidden.shape[-1]
    places = torch.arange(size, dtype=hidden.dtype) * (count - 1) / (size - 1)
    weights = (1 - (places[:, None] - torch.arange(count)).abs()).clamp_min(0)
    return weights @ hidden @ weights.T


def test_dunet_by_hand() -> None:
    """`lfz/Guided-Denoise`: corners to corners on the way up, BN eps 1e-5 and momentum .1."""
    torch.manual_seed(0)
    made = DenoisingUnet(3, 2).double().train()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def run(level: nn.Module, hidden: Tensor) -> Tensor:
        for layer in level:
            if isinstance(layer, NormedConvolution):
                weight, stride = layer.convolution.weight, layer.convolution.stride
                hidden = functional.conv2d(hidden, weight, None, stride, 1)
                means.append((layer.norm, hidden.mean(dim=(0, 2, 3))))
                centred = hidden - means[-1][1].view(1, -1, 1, 1)
                variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
                hidden = torch.relu(centred / (variance + 1e-5).sqrt())
        return hidden

    means: list[tuple[nn.BatchNorm2d, Tensor]] = []
    skips = [run(made.down[0], images)]
    for level in made.down[1:]:
        skips.append(run(level, skips[-1]))
    assert [skip.shape[-1] for skip in skips] == [32, 16, 8, 4, 2]
    hidden = skips.pop()
    for level in made.up:
        skip = skips.pop()
        raised = corner_to_corner(hidden, skip.shape[-1])
        hidden = run(level, torch.cat([raised, skip], dim=1))
    expected = images + functional.conv2d(hidden, made.output.weight)
    torch.testing.assert_close(made(images), expected)
    for norm, mean in means:
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_and_every_level_is_used(name: str) -> None:
    made = MAKERS[name](3, 2, 0.1).train()
    made(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
