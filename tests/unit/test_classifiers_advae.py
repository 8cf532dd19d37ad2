"""The AdvAE paper's classifiers against its Table 2, upstream's counts and forwards by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from purifiers.classifiers._layered import Layered, _padding
from purifiers.classifiers.advae_a import AdvaeA
from purifiers.classifiers.advae_b import AdvaeB
from purifiers.classifiers.advae_c import AdvaeC
from purifiers.classifiers.advae_d import AdvaeD
from purifiers.classifiers.advae_x import AdvaeX
from purifiers.classifiers.resnet_v2 import ResnetV2
from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.training.plateau import Plateau

PAPER = Path(__file__).resolve().parents[2] / "benchmarks/advae/paper.yaml"
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
COUNTS = {AdvaeX: 312_202, AdvaeA: 1_285_194, AdvaeB: 710_218, AdvaeC: 1_460_938, AdvaeD: 199_210}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def seeded(cls, *arguments, **parameters):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(*arguments, **parameters)


# Table 2


@pytest.mark.parametrize("cls", COUNTS)
def test_published_parameter_counts(cls):
    assert count(cls(MNIST, 10)) == COUNTS[cls]


def test_the_declaration_names_them():
    declared = yaml.safe_load(PAPER.read_text())["classifiers"]
    made = {}
    for name, recipe in declared.items():
        cls = registry.load("classifier", recipe.pop("component"))
        made[name] = count(build(cls, CIFAR if "resnet" in name else MNIST, 10, **recipe))
    letters = dict(zip("xabcd", COUNTS.values(), strict=True))
    assert made == {**letters, "resnet_v2_29": 843_786}


LAYERS = {  # kind and, of what has one: units or (channels, kernel, stride) or rate
    AdvaeX: "conv 32 3 1, conv 32 3 1, pool 2, conv 64 3 1, conv 64 3 1, pool 2, "
    "dense 200, dropout 0.5, dense 200, dense 10",
    AdvaeA: "conv 64 5 1, conv 64 5 2, dropout 0.25, dense 128, dropout 0.5, dense 10",
    AdvaeB: "dropout 0.2, conv 64 8 2, conv 128 6 2, conv 128 5 1, dropout 0.5, dense 10",
    AdvaeC: "conv 128 3 1, conv 64 3 2, dropout 0.25, dense 128, dropout 0.5, dense 10",
    AdvaeD: "dense 200, dropout 0.5, dense 200, dropout 0.5, dense 10",
}


def describe(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Conv2d):
        return f"conv {layer.out_channels} {layer.kernel_size[0]} {layer.stride[0]}"
    if isinstance(layer, nn.Linear):
        return f"dense {layer.out_features}"
    if isinstance(layer, nn.Dropout):
        return f"dropout {layer.p}"
    return f"pool {layer.kernel_size}" if isinstance(layer, nn.MaxPool2d) else None


@pytest.mark.parametrize("cls", COUNTS)
def test_layers_in_their_order(cls):
    """As they run, not as they were defined; a ReLU after each convolution and inner layer."""
    network = cls(MNIST, 10).eval()
    ran: list[nn.Module] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    network(torch.rand(2, *MNIST))
    assert ", ".join(filter(None, map(describe, ran))) == LAYERS[cls]
    weighted = [place for place, layer in enumerate(ran) if hasattr(layer, "weight")]
    assert all(isinstance(ran[place + 1], nn.ReLU) for place in weighted[:-1])
    assert ran[-1] is network.head


def test_forward_of_x_by_hand():
    network = seeded(AdvaeX, (2, 16, 18), 5, width=3).eval()
    state, images = network.state_dict(), torch.rand(3, 2, 16, 18)

    def layer(x, name, place, function):
        return F.relu(function(x, state[f"{name}.{place}.weight"], state[f"{name}.{place}.bias"]))

    conv1 = layer(images, "conv1", 0, F.conv2d)
    conv2 = F.max_pool2d(layer(conv1, "conv2", 0, F.conv2d), 2)
    conv3 = layer(conv2, "conv3", 0, F.conv2d)
    conv4 = F.max_pool2d(layer(conv3, "conv4", 0, F.conv2d), 2)
    dense1 = layer(conv4.flatten(1), "dense1", 1, F.linear)
    dense2 = layer(dense1, "dense2", 1, F.linear)
    with torch.no_grad():
        found = network.features(images, network.TAPS)
        expected = (conv1, conv2, conv3, conv4, dense1[..., None, None], dense2[..., None, None])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        logits = F.linear(dense2, state["head.weight"], state["head.bias"])
        torch.testing.assert_close(network(images), logits)


# padding and size


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (28, 5, 1, (2, 2)),
        (28, 8, 2, (3, 3)),
        (15, 8, 2, (3, 4)),
        (16, 8, 1, (3, 4)),
        (9, 1, 3, (0, 0)),
    ],
)
def test_tensorflow_same_padding(size, kernel, stride, expected):
    before, after = _padding(size, kernel, stride)
    assert (before, after) == expected
    assert (size + before + after - kernel) // stride + 1 == math.ceil(size / stride)


def test_odd_padding_goes_below_and_to_the_right():
    network = Layered((1, 4, 5), 2)
    layer = network.convolution(1, 2, same=True)
    assert network._reached == (1, 4, 5)
    with torch.no_grad():
        for module in layer:
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]]))
                module.bias.zero_()
        image = torch.arange(20.0).view(1, 1, 4, 5)
        found = layer(image)[0, 0]
    assert found[0, 0] == 0 + 10 * 1 + 100 * 5 + 1000 * 6
    assert found[0, 4] == 4 + 100 * 9  # nothing to the right
    assert found[3, 4] == 19  # nor below


@pytest.mark.parametrize(
    ("cls", "least", "parameters"),
    [(AdvaeX, 16, {}), (AdvaeA, 5, {}), (AdvaeB, 27, {}), (AdvaeB, 14, {"first_stride": 1}),
     (AdvaeC, 3, {})],
)  # fmt: skip
def test_smallest_images(cls, least, parameters):
    network = cls((1, least, least), 10, **parameters).eval()
    assert network(torch.rand(2, 1, least, least)).shape == (2, 10)
    small = rf"{cls.__name__}: images of 1x{least - 1}x40 are too small, only .* pixels reach a \dx"
    with pytest.raises(UserError, match=small):
        cls((1, least - 1, 40), 10, **parameters)


def test_width():
    assert AdvaeX(MNIST, 10, width=8).conv3[0].out_channels == 16
    assert AdvaeB(MNIST, 10, width=8).conv3[0].out_channels == 16
    assert AdvaeC(MNIST, 10, width=8).conv1[-2].out_channels == 16
    assert AdvaeD(MNIST, 10, width=8).head.in_features == 8


def test_glorot_uniform():
    """Limits sqrt(6 / (fan-in + fan-out)); of a 3x3 convolution from 64 to 64: 9 * 128."""
    network = seeded(AdvaeX, MNIST, 10)
    for weight, limit in (
        (network.conv4[0].weight, (6 / 1152) ** 0.5),
        (network.dense1[1].weight, (6 / (1024 + 200)) ** 0.5),
        (network.head.weight, (6 / 210) ** 0.5),
    ):
        assert 0.98 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.03)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


# ResNetV2


def test_keras_counts():
    """Keras reports 849,002 for depth 29, of which 843,786 are trained."""
    network = ResnetV2(CIFAR, 10)
    running = sum(b.numel() for n, b in network.named_buffers() if "running" in n)
    assert (count(network), count(network) + running) == (843_786, 849_002)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 28 + 3  # with the head 29 deep, and a shortcut per stage


@pytest.mark.parametrize("depth", [2, 10, 12, 56 + 1])
def test_depth_is_checked(depth):
    with pytest.raises(UserError, match=f"depth is {depth}, but must be 9 n"):
        ResnetV2(CIFAR, 10, depth=depth)


def test_resnet_taps():
    network = ResnetV2(CIFAR, 10, depth=11, width=4).eval()
    shapes = [tuple(f.shape[1:]) for f in network.features(torch.rand(1, *CIFAR), network.TAPS)]
    assert shapes == [(4, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    strided = ResnetV2(CIFAR, 10, depth=11, width=4, first_stride=2).eval()
    assert strided.features(torch.rand(1, *CIFAR), ("stage3",))[0].shape == (1, 64, 4, 4)


def test_resnet_forward_by_hand():
    """The first bottleneck of stage 1 gets an activation; projections see the raw input."""
    network = seeded(ResnetV2, (3, 8, 8), 4, depth=20, width=2, norm_momentum=0.3).train()
    network(torch.rand(16, 3, 8, 8))  # so that the running statistics say something
    state, images = network.eval().state_dict(), torch.rand(3, 3, 8, 8)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-3))

    def conv(x, name, **how):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    x = norm(conv(images, "conv1.0", padding=1), "conv1.1")
    taps = [x]
    for stage, stride in (("stage1", 1), ("stage2", 2), ("stage3", 2)):
        for block in range(2):
            name, step = f"{stage}.{block}", stride if block == 0 else 1
            first = stage == "stage1" and block == 0
            y = conv(x if first else norm(x, f"{name}.norm1"), f"{name}.conv1", stride=step)
            y = conv(norm(y, f"{name}.norm2"), f"{name}.conv2", padding=1)
            y = conv(norm(y, f"{name}.norm3"), f"{name}.conv3")
            x = y + (conv(x, f"{name}.shortcut", stride=step) if block == 0 else x)
        taps.append(x)
    logits = F.linear(norm(x, "norm").mean(dim=(2, 3)), state["head.weight"], state["head.bias"])
    with torch.no_grad():
        torch.testing.assert_close(network(images), logits)
        for found, expected in zip(network.features(images, network.TAPS), taps, strict=True):
            torch.testing.assert_close(found, expected)


def test_resnet_starts_as_in_keras():
    network = seeded(ResnetV2, CIFAR, 10)
    weight = network.stage3[1].conv2.weight  # fan-in 9 * 128
    assert weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    cut = 2 * (2 / 1152) ** 0.5 / 0.8796
    assert 0.98 * cut < weight.abs().max() <= cut * 1.0001
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(bias is not None and not bias.any() for bias in biases)


# the clean recipe


def test_clean_recipe_is_the_declared_one():
    """The component's defaults are what ``paper.yaml`` says, so neither can drift alone."""
    declared = yaml.safe_load(PAPER.read_text())["trainings"]["natural"]
    assert declared.pop("component") == "plateau"
    given = {name: value for name, value in declared.items() if not str(value).startswith("$")}
    assert Plateau(**given).recipe == Plateau().recipe
    recipe = Plateau().recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 1e-3, 128)
    assert (recipe.epochs, recipe.validation, recipe.early_stopping) == (100, 0.1, 10)


def test_the_rate_of_the_paper():
    """Halved after 4 epochs without a lower validation loss, never below 5e-5."""
    recipe = Plateau().recipe
    losses = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.4] + [0.9] * 60
    rates = [recipe.rate(0, 1, losses[:epochs]) for epochs in range(len(losses) + 1)]
    assert rates[:6] == [1e-3] * 6 and rates[6:11] == [5e-4] * 5 and rates[11] == 2.5e-4
    assert rates[-1] == 5e-5 == min(rates)
