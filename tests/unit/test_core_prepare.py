"""Preparing a classifier changes how long an answer takes, not the answer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.pgd import Pgd
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core import active
from purifiers.core.convolution import GreyConvolution, convolve
from purifiers.core.errors import UserError
from purifiers.core.prepare import CHUNK, Prepared


def lively(module: nn.Module) -> nn.Module:
    """Statistics and scales that a wrong folding would show."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            if part.track_running_stats:
                part.running_mean.normal_(0.0, 0.5)
                part.running_var.uniform_(0.3, 3.0)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2.0)
                nn.init.normal_(part.bias)
    return module.eval()


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 5),
    )


class Shared(nn.Module):
    """One convolution in front of two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(self.convolution(images)).relu()
        return self.second(self.convolution(hidden)).mean(dim=(2, 3))


class Read(nn.Module):
    """A convolution that somebody else reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.convolution(images)
        return (self.normalisation(raw) - raw.abs()).mean(dim=(2, 3))


class ReadRaw(nn.Module):
    """What is rectified is read by somebody else, too; and images are rectified themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.convolution(images)
        return (functional.relu(raw) - raw + torch.relu(images)).mean(dim=(2, 3))


class WithoutStatistics(nn.Module):
    """Normalises by its batch, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3)
        self.normalisation = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.normalisation(self.convolution(images)).amax(dim=(2, 3))


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


NETWORKS = {
    "wide_resnet": lambda: WideResnet((3, 16, 16), 10, depth=10, widen_factor=2),
    "small": small,
    "shared": Shared,
    "read": Read,
    "read_raw": ReadRaw,
    "without_statistics": WithoutStatistics,
}


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    return lively(NETWORKS[request.param]())


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def assert_alike(made: Prepared, network: nn.Module, images: Tensor) -> None:
    """The same answers and the same gradients of the images."""
    torch.testing.assert_close(made(images), network(images), atol=1e-5, rtol=1e-5)
    gradients = []
    for model in (made, network):
        leaf = images.clone().requires_grad_(True)
        loss = functional.cross_entropy(model(leaf), torch.arange(len(images)) % 3)
        gradients += torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_answers_and_gradients_stay(network):
    assert_alike(Prepared(network), network, torch.rand(6, 3, 16, 16))


@pytest.mark.parametrize(("name", "left"), [("small", 1), ("shared", 2), ("read", 1)])
def test_what_is_folded_is_gone_and_the_rest_is_there(name, left):
    assert normalisations(Prepared(lively(NETWORKS[name]())).module) == left


@pytest.mark.parametrize(("name", "in_place"), [("wide_resnet", 7), ("small", 2), ("read_raw", 0)])
def test_relu_overwrites_what_nothing_else_reads(name, in_place):
    graph = Prepared(lively(NETWORKS[name]())).module.graph
    assert sum(node.target is torch.relu_ for node in graph.nodes) == in_place


GREY = {
    "3x3": (nn.Conv2d(1, 32, 3), True),
    "5x5, padded and strided": (nn.Conv2d(1, 40, (5, 3), stride=(2, 1), padding=(2, 0)), True),
    "without bias": (nn.Conv2d(1, 32, 3, bias=False), True),
    "few channels": (nn.Conv2d(1, 2, 3), True),
    "dilated": (nn.Conv2d(1, 32, 3, dilation=2), False),
    "colour": (nn.Conv2d(3, 32, 3), False),
    "reflected": (nn.Conv2d(1, 32, 3, padding=1, padding_mode="reflect"), False),
    "padded by name": (nn.Conv2d(1, 32, 3, padding="same"), False),
}


@pytest.mark.parametrize("name", GREY)
def test_convolutions_of_grey_images_have_their_own_gradient(name):
    convolution, expected = GREY[name]
    network = nn.Sequential(copy.deepcopy(convolution), nn.ReLU(), nn.Flatten())
    made = Prepared(network)
    assert any(isinstance(part, GreyConvolution) for part in made.module.modules()) == expected
    assert_alike(made, network, torch.rand(4, convolution.in_channels, 13, 12))


def test_a_trained_convolution_of_grey_images_keeps_its_gradients():
    weight, bias = torch.randn(8, 1, 3, 3), torch.randn(8)
    images = torch.rand(4, 1, 13, 12)
    found = []
    for compute in (convolve, functional.conv2d):
        leaves = [part.clone().requires_grad_(True) for part in (images, weight, bias)]
        made = compute(*leaves, (1, 1), (1, 1))
        found.append(torch.autograd.grad(made.square().sum(), leaves))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_preparing_draws_no_random_numbers(precision):
    """It happens in the midst of a training whose dropout has to repeat itself after a kill."""
    networks = [small(), nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU())]
    before = torch.get_rng_state()
    for network in networks:
        Prepared(network, precision)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_classifier_stays_as_it_was(precision):
    network = lively(small()).train()
    before = copy.deepcopy(network.state_dict())
    made = Prepared(network, precision)
    made(torch.rand(2, 3, 16, 16))
    assert network.training and normalisations(network) == 3
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    theirs = {p.data_ptr() for p in network.parameters()}
    assert not theirs & {p.data_ptr() for p in made.module.parameters()}


def test_what_is_prepared_is_frozen():
    """In evaluation mode too: neither dropout nor running statistics move."""
    made = Prepared(lively(small()).train())
    assert not any(part.training for part in made.module.modules())
    assert not any(p.requires_grad for p in made.module.parameters())
    images = torch.rand(6, 3, 16, 16)
    assert torch.equal(made(images), made(images))
    assert made.chunk == CHUNK


def low_precision(made: Prepared) -> bool:
    return any(p.dtype == torch.bfloat16 for p in made.module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_judge_is_the_network_itself_to_the_bit(name):
    """In its own memory layout, evaluated, and left in its mode; in whatever layout images come."""
    network, images = lively(NETWORKS[name]()), torch.rand(6, 3, 16, 16)
    expected = network(images)
    made = Prepared(network.train())
    made(images)
    assert made.exact is not None
    assert torch.equal(made.exact(images.contiguous(memory_format=torch.channels_last)), expected)
    assert all(part.training for part in network.modules())
    with torch.no_grad():
        next(network.parameters()).mul_(2.0)
    assert not torch.equal(made.exact(images), expected)


def test_no_judge_where_preparing_changes_neither_layers_nor_layout():
    network = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)))
    images = torch.rand(4, 3, 16, 16)
    for same in (False, True):
        made = Prepared(network)
        made(images)
        assert (made.exact is None) is same
        assert (Prepared(network).exact is None) is same  # used again
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(made(images), network(images.contiguous(memory_format=torch.channels_last)))
    low = Prepared(network, "bfloat16")
    low(images)
    assert low.exact is not None


def test_a_device_confirms_in_low_precision_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each confirmation would make the host wait."""
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    network, images = lively(NETWORKS[next(iter(NETWORKS))]()), torch.rand(4, 3, 16, 16)
    for precision in ("float32", "bfloat16"):
        made = Prepared(network, precision)
        made(images)
        assert (made.exact is None) is (precision == "float32")


class Untraceable(nn.Module):
    """A forward that depends on the images' values or their number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = small(), how

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "branch" and images.mean() < 0:
            return self.body(-images)
        if self.how == "length":
            images = images.reshape(len(images), 3, 16, 16)
        if self.how == "loop":
            images = torch.stack([image + 0.1 for image in images])
        if self.how == "number":
            images = images * float(images.mean())
        if self.how == "look_up":
            images = images * {16: 2.0}[images.shape[-1]]
        return self.body(images)


@pytest.mark.parametrize("how", ["branch", "length", "loop", "number", "look_up"])
def test_networks_that_cannot_be_traced_are_left_alone(how):
    network = lively(Untraceable(how))
    made, images = Prepared(network), torch.rand(3, 3, 16, 16)
    assert isinstance(made.module, Untraceable) and normalisations(made.module) == 3
    torch.testing.assert_close(made(images), network(images), atol=1e-6, rtol=1e-5)
    assert not any(p.requires_grad for p in made.module.parameters())
    with pytest.raises(UserError, match="Untraceable cannot be run in bfloat16"):
        Prepared(network, "bfloat16")


def test_a_network_that_is_broken_stays_broken():
    """Tracing hides no mistake of the network's own."""

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Prepared(Broken())(torch.rand(1, 3, 4, 4))


# Networks that preparing would change


def hooked(network: nn.Module) -> nn.Module:
    """A network that normalises its input in a hook of its own, which tracing does not see."""
    network.register_forward_pre_hook(lambda _, inputs: (3.0 * (inputs[0] - 0.5),))
    return network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_with_a_hook_of_its_own_is_attacked_as_it_is(precision):
    network = hooked(lively(small()))
    made, images = Prepared(network, precision), torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(made(images), network(images))
    assert made.fallback.startswith("logits of the prepared network differ by")
    assert not low_precision(made)
    torch.testing.assert_close(made(images[:2]), network(images[:2]))


def test_an_attack_through_a_hooked_network_is_as_strong_as_on_the_network(victim):
    """Before, PGD attacked the network without its hook: most images stayed correct."""
    network = hooked(copy.deepcopy(victim.model))
    with torch.no_grad():
        labels = network(victim.images).argmax(dim=1)
    attack = Pgd(eps=0.1, step_size=0.025, steps=10)

    def kept(model: Callable[..., Tensor]) -> int:
        adversarial = attack(model, victim.images, labels)
        with torch.no_grad():
            return int((network(adversarial).argmax(dim=1) == labels).sum())

    unhooked = kept(Prepared(victim.model))
    assert kept(Prepared(network)) == kept(network) < unhooked


def test_a_difference_that_only_other_images_show_is_noticed():
    """The first batch is black, which the hook leaves alone."""

    network = lively(small())
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].square(),))
    made = Prepared(network)
    made(torch.zeros(2, 3, 16, 16))
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(made(images), network(images))
    assert made.fallback


def test_a_network_that_cannot_be_copied_is_attacked_as_it_is():
    network = small()
    nn.utils.weight_norm(network[0])
    lively(network)
    made, images = Prepared(network), torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(made(images), network(images))
    assert made.fallback.startswith("preparing failed: ")


def test_what_agrees_stays_prepared():
    """Also with dropout that is active in training, and for answers that are not finite."""
    network = lively(nn.Sequential(small(), nn.Dropout(0.5)))
    made, images = Prepared(network), torch.rand(3, 3, 16, 16)
    made.module.get_submodule("1").train()
    made(images)
    assert not made.fallback and made.module.get_submodule("1").training
    broken = lively(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)))
    nn.init.constant_(broken[1].bias, float("nan"))
    made = Prepared(broken)
    assert torch.isnan(made(images)).all() and not made.fallback


# Low precision


def test_bfloat16_keeps_predictions_and_the_exact_answer(victim):
    made = Prepared(victim.model, "bfloat16")
    low, true = made(victim.images), victim.model(victim.images)
    assert low.dtype == torch.float32
    assert (low.argmax(dim=1) == true.argmax(dim=1)).float().mean() > 0.95
    assert 0 < (low - true).abs().max() < 0.05 * true.abs().max()
    assert torch.equal(made.exact(victim.images), true)
    assert low_precision(made) and not low_precision(Prepared(victim.model))


def test_the_first_layer_keeps_float32(victim):
    """A change of the image far below bfloat16's steps still has its gradient."""
    made = Prepared(victim.model, "bfloat16")
    dtypes = [part.weight.dtype for part in made.module.modules() if hasattr(part, "weight")]
    assert dtypes[0] == torch.float32 and set(dtypes[1:]) == {torch.bfloat16}
    leaf = victim.images.clone().requires_grad_(True)
    true = victim.images.clone().requires_grad_(True)
    functional.cross_entropy(made(leaf), victim.labels).backward()
    functional.cross_entropy(victim.model(true), victim.labels).backward()
    assert leaf.grad.dtype == torch.float32
    assert functional.cosine_similarity(leaf.grad.flatten(), true.grad.flatten(), dim=0) > 0.95


def test_unknown_precision():
    with pytest.raises(UserError, match=r"'bfloat15': choose one of .*did you mean 'bfloat16'"):
        Prepared(small(), "bfloat15")
