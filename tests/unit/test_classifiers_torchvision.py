"""ResNet-18, ResNet-50 and Inception-v3: torchvision's networks, and a stem for small images."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import purifiers
from purifiers.core.errors import UserError
from purifiers.core.heads import head_name
from purifiers.core.prepare import Prepared

IMAGENET = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=7),
    "inception_v3": lambda: torchvision.models.inception_v3(
        num_classes=7, aux_logits=False, init_weights=False, transform_input=False
    ),
}
SMALL = {"resnet18": 4, "resnet50": 4, "inception_v3": 2}


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", IMAGENET)
def test_with_the_stem_of_imagenet_it_is_torchvisions(name):
    theirs = IMAGENET[name]().eval()
    ours = purifiers.classifier(name, (3, 80, 80), 7, stem="imagenet").eval()
    weights = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(weights))
    images = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("name", "expected", "embedding"),
    [("resnet18", 11_173_962, 512), ("resnet50", 23_520_842, 2048), ("inception_v3", None, 2048)],
)
def test_the_full_size(name, expected, embedding):
    with torch.device("meta"):
        network = purifiers.classifier(name, (3, 32, 32), 10)
    if expected is None:  # torchvision's with 1000 classes and without the auxiliary one
        expected = 23_834_568 - 990 * (2048 + 1)
    assert size(network) == expected
    assert network.head.in_features == embedding


@pytest.mark.parametrize(("name", "width"), SMALL.items())
def test_small_images_keep_their_pixels_to_the_first_stage(name, width):
    network = purifiers.classifier(name, (1, 16, 16), 10, width=width).eval()
    with torch.no_grad():
        shapes = [
            tuple(f.shape[1:]) for f in network.features(torch.rand(1, 1, 16, 16), network.TAPS)
        ]
    sides = [side for _, _, side in shapes]
    expected = [16, 16, 8, 4, 2, 1] if name.startswith("resnet") else [16, 16, 7, 3, 1]
    assert sides == expected
    assert shapes[-1] == (network.head.in_features, 1, 1)
    assert head_name(network, (1, 16, 16)) == "head"
    halved = purifiers.classifier(name, (1, 16, 16), 10, width=width, first_stride=2).eval()
    assert halved.features(torch.rand(1, 1, 16, 16), ("stem",))[0].shape[-1] == 8
    assert Prepared(halved).fallback == ""


def test_refusals():
    with pytest.raises(UserError, match=r"stem is 'cifar'"):
        purifiers.classifier("resnet18", (3, 32, 32), 10, stem="cifar")
    with pytest.raises(UserError, match=r"width is 5, .* an even number"):
        purifiers.classifier("inception_v3", (3, 32, 32), 10, width=5)
    with pytest.raises(UserError, match=r"side 12 are too small .* at least 14 pixels"):
        purifiers.classifier("inception_v3", (3, 12, 12), 10, width=2, first_stride=2)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (62, 952_986), (110, 1_730_714)])
def test_parameters_of_the_resnet_for_small_images(depth, parameters):
    """He et al. 2016, table 6: 0.27 and 1.7 million at depths 20 and 110; 2,752 are shortcuts."""
    network = purifiers.classifier("cifar_resnet", (3, 32, 32), 10, depth=depth)
    assert size(network) == parameters


def test_a_depth_without_whole_blocks_is_refused():
    with pytest.raises(UserError, match=r"depth is 18: choose 8, 14, 20"):
        purifiers.classifier("cifar_resnet", (3, 32, 32), 10, depth=18)
