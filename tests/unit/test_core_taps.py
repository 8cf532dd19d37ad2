"""Taps on networks that are not the suite's: torchvision, timm, and what else has submodules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.component import Method, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.prepare import Prepared
from purifiers.core.robustbench_compat import import_robustbench
from purifiers.core.taps import deepest_tap, tap_shapes, tapped_features
from purifiers.methods.aid import Aid
from purifiers.methods.nrp import Nrp

SHAPE = (3, 32, 32)
LABELS = torch.tensor([0, 1, 2, 3])
INDICES = torch.arange(4)
AID: dict[str, Any] = {"width": 32, "extra_layers": 0, "train_steps": 2, "iterations": 2}
NRP: dict[str, Any] = {"blocks": 1, "channels": 4, "attack_steps": 2, "batch_size": 4}


def torchvision_resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=4)


def timm_resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=4)


def timm_transformer() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=2,
        num_classes=4,
    )  # fmt: skip


def robustbench_wide_resnet() -> nn.Module:
    import_robustbench()
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    return WideResNet(depth=10, widen_factor=1, num_classes=4)


NETWORKS = {
    "robustbench": (robustbench_wide_resnet, ["block1", "block3"]),
    "torchvision": (torchvision_resnet, ["layer1", "layer3"]),
    "timm": (timm_resnet, ["conv1", "layer4.0.conv2"]),
    "transformer": (timm_transformer, ["patch_embed", "blocks.1"]),
}


def network_of(name: str) -> tuple[nn.Module, list[str]]:
    make, taps = NETWORKS[name]
    torch.manual_seed(0)
    return frozen(make()), taps


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def hooks(network: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in network.modules())


# the same tensors as by other means


def test_hooks_give_the_features_of_the_suites_own_classifiers(images):
    network = frozen(WideResnet(SHAPE, 4, depth=10, widen_factor=1))
    own = network.features(images, network.TAPS)
    named = ("stage1.0", *network.TAPS[:3])  # one is no tap, so that all of them are hooked
    hooked = tapped_features(network, images, named)[1:]
    assert all(torch.equal(one, other) for one, other in zip(hooked, own[:3], strict=True))
    (called,) = tapped_features(network, images, ("stage1",))
    assert torch.equal(called, own[1])


def test_outputs_are_those_of_a_forward_pass_by_hand(images):
    network, _ = network_of("torchvision")
    before = network.conv1(images)
    normalised = network.bn1(before)
    first = network.layer1(network.maxpool(normalised.relu()))
    # bn1 is followed by a ReLU in place, and the order of the names is free
    found = tapped_features(network, images, ["layer1", "bn1", "conv1"])
    for one, expected in zip(found, (first, normalised, before), strict=True):
        torch.testing.assert_close(one, expected)
    assert hooks(network) == 0


def test_vectors_and_tokens_become_maps(images):
    network, _ = network_of("transformer")
    norm, head = tapped_features(network, images, ["norm", "head"])
    assert head.shape == (4, 4, 1, 1) and norm.shape == (4, 24, 17, 1)
    torch.testing.assert_close(norm.mean(dim=(2, 3)), network.forward_features(images).mean(1))
    torch.testing.assert_close(head.flatten(1), network(images))


def test_nothing_behind_the_last_tap_runs(images):
    network, _ = network_of("torchvision")
    network.layer2.forward = None  # would raise
    assert tapped_features(network, images, ["layer1"])[0].shape == (4, 64, 8, 8)


def test_a_repeated_submodule_counts_once(images):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.same(self.same(images))).mean(dim=(2, 3))

    network = Twice()
    found, _ = tapped_features(network, images, ["same", "last"])
    assert torch.equal(found, network.same(images))


# errors, and what they leave behind


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["conv1", "stage3"], r"ResNet has no tap 'stage3'.* such as conv1, bn1, layer1, .*layer4"),
        (["layr1"], r"no tap 'layr1' \(did you mean 'layer\d'\?\)"),
        ([""], "no tap ''"),
    ],
)
def test_unknown_names(images, taps, message):
    network, _ = network_of("torchvision")
    with pytest.raises(UserError, match=message) as raised:
        tapped_features(network, images, taps)
    assert "\n" not in str(raised.value)


def test_candidates_are_inside_a_wrapper(images):
    wrapped = nn.Sequential(nn.Identity(), network_of("torchvision")[0])
    with pytest.raises(UserError, match=r"such as 1\.conv1, 1\.bn1, 1\.layer1"):
        tapped_features(wrapped, images, ["layer1"])
    assert tapped_features(wrapped, images, ["1.layer1"])[0].shape == (4, 64, 8, 8)


class Odd(nn.Module):
    """Submodules whose outputs are no representation of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pair = Returns(lambda hidden: (hidden.flatten(2), None))
        self.named = Returns(lambda hidden: {"hidden": hidden})
        self.mixed = Returns(lambda hidden: hidden.flatten(0, 1))
        self.breaks = Returns(lambda hidden: 1 / 0)
        self.idle = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv(images)
        self.pair(hidden), self.named(hidden), self.mixed(hidden)
        return hidden.mean(dim=(2, 3))


class Returns(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor) -> Any:
        return self.function(hidden)


def test_outputs_that_are_no_representation(images):
    network = Odd()
    assert tapped_features(network, images, ["pair"])[0].shape == (4, 900, 4, 1)
    for tap, message in (
        ("idle", "'idle' of Odd is not called"),
        ("named", "'named' of Odd is a dict"),
        ("mixed", r"'mixed' of Odd has shape \(16, 30, 30\) for 4 images"),
    ):
        with pytest.raises(UserError, match=message):
            tapped_features(network, images, ["conv", tap])
        assert hooks(network) == 0


def test_no_hook_outlives_an_error(images):
    network = Odd()
    network.forward = lambda images: network.breaks(network.conv(images))
    with pytest.raises(ZeroDivisionError):
        tapped_features(network, images, ["conv", "breaks"])
    assert hooks(network) == 0


def test_probing_leaves_modes_and_statistics():
    network = torchvision_resnet().train()
    network.layer2.eval()
    kept = copy.deepcopy(network.state_dict())
    modes = [part.training for part in network.modules()]
    assert tap_shapes(network, SHAPE, ["layer3"]) == {"layer3": (256, 2, 2)}
    assert deepest_tap(network, SHAPE) == "layer3"  # layer4 has one pixel
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"), [("timm", "layer3"), ("transformer", "norm"), ("torchvision", "layer3")]
)
def test_deepest_tap(name, expected):
    assert deepest_tap(network_of(name)[0], SHAPE) == expected


def test_a_compiled_network_is_run_uncompiled(images):
    network, taps = network_of("torchvision")
    compiled = torch.compile(network, backend="eager")
    for one, other in zip(
        tapped_features(compiled, images, taps), tapped_features(network, images, taps), strict=True
    ):
        assert torch.equal(one, other)


# AID and NRP on such networks


def fitted(method: Method, network: nn.Module, folder: Any) -> Method:
    method.bind(network, SHAPE)
    for part in method.modules():
        if isinstance(part, nn.Linear):  # lively, so that every input shows in the output
            nn.init.kaiming_normal_(part.weight)
    pixels = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8).numpy()
    labels = (torch.arange(8) % 4).numpy()
    before = copy.deepcopy(method.state_dict())
    fit(method.train(), method.fit_loss, pixels, labels, method.recipe, 0, folder / "c", "m", "m")
    changed = [not torch.equal(value, before[key]) for key, value in method.state_dict().items()]
    assert any(changed)
    return frozen(method)


@pytest.mark.parametrize("variant", ["paper", "upstream"])
@pytest.mark.parametrize("name", NETWORKS)
def test_aid(name, variant, images, tmp_path):
    network, taps = network_of(name)
    recipe = {"batch_size": 4, "epochs": 1, "learning_rate": 0.01}
    method = fitted(Aid(variant=variant, taps=taps, **AID, **recipe), network, tmp_path)
    assert len(method.discriminator.branches) == 2  # of the named taps only
    purified = method.purify(images)
    assert 0 < (purified - images).abs().max() <= 8 / 255 + 1e-6
    assert (method.detector_logit(purified) < method.detector_logit(images)).all()
    gradients = []
    for gradient in ("exact", "second_order"):
        leaf = images.clone().requires_grad_(True)
        logits = Defence(network, [method], gradient=gradient)(leaf)
        (found,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        assert torch.isfinite(found).all() and found.any()
        gradients.append(found)
    # a network of ReLUs has no second derivative
    assert torch.equal(*gradients) is (name != "transformer")
    assert hooks(network) == 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tap", ["deepest", None])
def test_nrp(name, tap, images, tmp_path):
    network, taps = network_of(name)
    method = fitted(Nrp(tap=tap or taps[-1], epochs=1, **NRP), network, tmp_path)
    leaf = images.clone().requires_grad_(True)
    purified = method.purify(leaf)
    assert purified.shape == images.shape
    (found,) = torch.autograd.grad(network(purified)[:, 0].sum(), leaf)
    assert torch.isfinite(found).all() and found.any()


def test_aid_before_a_prepared_network(images):
    network, taps = network_of("torchvision")
    torch.manual_seed(0)
    method = Aid(taps=taps, **AID)
    method.bind(network, SHAPE)
    frozen(method)
    prepared = Prepared(network)
    logits = Defence(prepared, [method])(images)
    assert not prepared.fallback  # the original's hooks are not traced
    torch.testing.assert_close(logits, network(method.purify(images)), atol=1e-3, rtol=1e-3)


def test_default_taps_on_a_foreign_network():
    network, _ = network_of("torchvision")
    with pytest.raises(UserError, match=r"no tap 'stage3'.*layer1, layer2, layer3") as raised:
        Aid(**AID).bind(network, SHAPE)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no inner representations"):
        Nrp(**NRP).bind(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), SHAPE)


def test_suite_classifier_with_a_submodule():
    network = frozen(WideResnet(SHAPE, 4, depth=10, widen_factor=1))
    method = Aid(variant="upstream", taps=("conv1", "stage1.0"), **AID)
    method.bind(network, SHAPE)
    assert list(method.discriminator.channels) == ["conv1", "stage1.0"]
    method = Aid(variant="upstream", taps=("conv1", "stage1"), **AID)
    method.bind(network, SHAPE)
    assert list(method.discriminator.channels) == list(network.TAPS)
