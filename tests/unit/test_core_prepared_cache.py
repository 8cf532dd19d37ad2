"""A network is prepared once; any change of it prepares it anew."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import fx, nn

from purifiers.core import prepared_cache
from purifiers.core.prepare import Prepared

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SHARED = {"scale": 1.0}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, 5)
        self.scale = 1.0

    def forward(self, images):
        return SHARED["scale"] * self.scale * self.head(self.body(images))


class Untraceable(Small):
    def forward(self, images):
        return super().forward(images) * (1 if images.sum() > 0 else 2)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Small().eval()


@pytest.fixture
def traces(monkeypatch):
    traced = []
    trace = fx.symbolic_trace

    def counted(module):
        traced.append(type(module).__name__)
        return trace(module)

    monkeypatch.setattr(fx, "symbolic_trace", counted)
    return traced


@pytest.mark.parametrize("precision, expected", [("float32", 1), ("bfloat16", 2)])
def test_traced_once(network, traces, precision, expected):
    first = Prepared(network, precision)
    logits = first(IMAGES)
    assert len(traces) == expected
    again = Prepared(network, precision)
    assert torch.equal(again(IMAGES), logits)
    assert again.module is first.module and not again.fallback
    assert len(traces) == expected
    assert torch.equal(again.exact(IMAGES), network(IMAGES))


def test_untraceable_networks_are_tried_once(traces):
    network = Untraceable().eval()
    assert torch.equal(Prepared(network)(IMAGES), Prepared(network)(IMAGES))
    assert len(traces) == 1


def optimise(network):
    network(IMAGES).square().sum().backward()
    torch.optim.SGD(network.parameters(), 1e-6).step()


def write_data(network):
    network.head.weight.data.mul_(1 + 1e-6)


def replace(network):
    network.head = nn.Linear(144, 5)


def set_attribute(network):
    network.scale = 2.0


def load(network):
    network.load_state_dict(Small().state_dict())


def statistics(network):
    network.body[1].running_mean.add_(0.1)


def hook(network):
    network.head.register_forward_hook(lambda module, images, logits: logits * 2)


def patch(network):
    network.forward = lambda images: network.head(network.body(images)) + 1


@pytest.mark.parametrize(
    "change", [optimise, write_data, replace, set_attribute, load, statistics, hook, patch]
)
def test_changes_prepare_anew(network, traces, change):
    Prepared(network)(IMAGES)
    before, seen = network.head.weight.detach().clone(), prepared_cache.signature(network)
    assert prepared_cache.fetch(network, "float32") is not None
    change(network)
    assert prepared_cache.fetch(network, "float32") is None
    assert (prepared_cache.signature(network) == seen) == (change is write_data)
    prepared = Prepared(network)
    torch.testing.assert_close(prepared(IMAGES), network.eval()(IMAGES), rtol=1e-4, atol=1e-5)
    assert len(traces) == 2
    if change is write_data:  # too small to be seen in logits
        assert torch.equal(prepared.module.head.weight, network.head.weight)
        assert not torch.equal(network.head.weight, before)


def test_changes_out_of_sight_are_noticed_in_the_logits(network, traces, monkeypatch):
    Prepared(network)(IMAGES)
    monkeypatch.setitem(SHARED, "scale", 3.0)
    torch.testing.assert_close(Prepared(network)(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)
    assert len(traces) == 2


def test_networks_with_unknown_attributes_are_not_kept(network, traces):
    network.state = object()
    assert prepared_cache.signature(network) is None
    Prepared(network)(IMAGES)
    Prepared(network)(IMAGES)
    assert len(traces) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_can_be_deleted(precision):
    network = Small().eval()
    Prepared(network, precision)(IMAGES)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
