"""Precision is declared: settings of the process and the caller have no effect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.core.errors import UserError
from purifiers.core.precision import computing, declared, rounding

# on a CPU without bfloat16 instructions this has no effect, and the tests cannot fail
CAREFREE = "medium"


def product(device: str = "cpu") -> Tensor:
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 64, 64, generator=draw).to(device)
    return left @ right


@contextlib.contextmanager
def carefree() -> Iterator[None]:
    """Settings that a user's program may have made: fast matrix products, and autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(CAREFREE)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return net.eval().requires_grad_(False)


def test_float32_whatever_the_caller_has_set():
    exact = product()
    with carefree():
        assert product().dtype == torch.bfloat16
        with computing("float32", "cpu"):
            assert torch.equal(product(), exact)
        with computing(None, "cpu"):
            assert torch.equal(product(), exact)
        assert product().dtype == torch.bfloat16


def test_settings_are_restored_also_after_an_error():
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.conv)
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # torch's default
    before = [switch.fp32_precision for switch in switches]
    with pytest.raises(ZeroDivisionError), computing("tf32", "cpu"):
        assert [switch.fp32_precision for switch in switches] == ["tf32", "tf32", "ieee"]
        with rounding("bfloat16"):
            assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3
        raise ZeroDivisionError
    assert [switch.fp32_precision for switch in switches] == before
    assert declared() == "float32" and not torch.is_autocast_enabled("cpu")


def test_an_inner_call_may_keep_or_change_the_precision():
    with computing("bfloat16", "cpu"):
        with computing(None, "cpu"):
            assert declared() == "bfloat16" and product().dtype == torch.bfloat16
        with computing("float32", "cpu"):
            assert declared() == "float32" and product().dtype == torch.float32
        assert declared() == "bfloat16"


def test_unknown_precision():
    with pytest.raises(UserError, match="did you mean 'bfloat16'"), computing("bfloat15", "cpu"):
        pass


@pytest.mark.parametrize("name", ["pgd", "cw_l2", "deepfool_l2", "apgd", "autoattack"])
def test_attacks_ignore_the_callers_settings(network, name):
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 8, 8, generator=draw)
    labels = network(images).argmax(1)
    options = {"cw_l2": {"steps": 20, "initial_const": 10.0}, "autoattack": {"square_queries": 20}}
    attack = purifiers.attack(name, **options.get(name, {}))
    expected = attack(network, images, labels)
    with carefree():
        assert torch.equal(attack(network, images, labels), expected)
    assert not torch.equal(expected, images)


def test_purification_and_scores_ignore_the_callers_settings(network):
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    purifier = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))
    )
    defence = purifiers.defend(network, [purifier.requires_grad_(False)])
    method = purifiers.method("adv_ae")
    torch.manual_seed(3)
    method.bind(network, (1, 8, 8))
    method.eval()
    with torch.no_grad():
        expected = [method.purify(images), defence(images), defence.purify(images)]
        with carefree():
            found = [method.purify(images), defence(images), defence.purify(images)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_an_attack_in_a_given_precision(network):
    """The model computes in it, and what is broken is broken in float32."""
    seen = []

    def model(images: Tensor) -> Tensor:
        seen.append((declared(), network(images).dtype))
        return network(images)

    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(1)
    attack = purifiers.attack("pgd", steps=2)
    attack(model, images, labels, precision="bfloat16")
    assert set(seen) == {("bfloat16", torch.bfloat16)}
    seen.clear()
    purifiers.attack("deepfool_l2", steps=2)(model, images, labels, precision="bfloat16")
    assert set(seen) == {("float32", torch.float32)}
    with pytest.raises(UserError, match="precision"):
        attack(model, images, labels, precision="half")
