"""ComDefend: its size, its code with and without noise, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purifiers
from purifiers.core.component import frozen
from purifiers.core.errors import UserError

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def bound(channels: int = 1, **parameters):
    method = purifiers.method("comdefend", **{"width": 4, "code": 2, **parameters})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method.bind(None, (channels, 8, 8))
    return method


def by_hand(method, slope: float, offset: float):
    """A code of ``slope`` (x - 1/2) + ``offset`` in channel 0, and R = sigmoid(code 0)."""
    method.compression = nn.Conv2d(1, 2, 1)
    method.reconstruction = nn.Conv2d(2, 1, 1)
    for part, weight in ((method.compression, [slope, 0.0]), (method.reconstruction, [1.0, 0.0])):
        part.weight.data = torch.tensor(weight).view(part.weight.shape)
        nn.init.constant_(part.bias, 0.0)
    method.compression.bias.data[0] = offset
    return method


def test_the_published_size():
    full = purifiers.method("comdefend")
    full.bind(None, (3, 32, 32))
    assert sum(parameter.numel() for parameter in full.parameters()) == 1_566_735
    convolutions = [m for m in full.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions[:9]] == [16, 32, 64, 128, 256, 128, 64, 32, 12]
    assert [m.out_channels for m in convolutions[9:]] == [32, 64, 128, 256, 128, 64, 32, 16, 3]


def test_bits_by_hand():
    """Code 8 (x - 1/2): bit 0 gives sigmoid(0), bit 1 sigmoid(1); the gradient ignores rounding."""
    method = frozen(by_hand(bound(), 8.0, 0.0))
    images = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).requires_grad_()
    purified = method.purify(images)
    assert purified.flatten().tolist() == pytest.approx([0.5, 0.7310586])
    (gradient,) = torch.autograd.grad(purified.sum(), images)
    slope = torch.sigmoid(torch.tensor(2.0)) * torch.sigmoid(torch.tensor(-2.0)) * 8.0
    outer = torch.tensor([0.25, 0.7310586 * 0.2689414])
    torch.testing.assert_close(gradient.flatten(), slope * outer)


def test_noise_of_1_at_test_time():
    """P(bit) = Phi(C(x)): with C = 1 everywhere about 84 %."""
    images = torch.full((2, 1, 64, 64), 0.5)
    noisy = frozen(by_hand(bound(test_sigma=1), 0.0, 1.0))
    assert noisy.random and not bound().random
    bits = (noisy.purify(images, 3, [5, 6]) > 0.6).float()
    assert float(bits.mean()) == pytest.approx(0.8413, abs=0.02)
    assert not torch.equal(bits[0], bits[1])
    assert torch.equal(noisy.purify(images[:1], 3, [6]), noisy.purify(images, 3, [5, 6])[1:])


@pytest.mark.parametrize(("sigma", "expected"), [(0.0, 0.731059), (20.0, 0.5)])
def test_the_loss_by_hand(sigma, expected):
    """C = 1: the code's first channel is sigmoid(1 - sigma n), about a fair bit at 20."""
    images = torch.full((8, 1, 64, 64), 0.5)
    method = by_hand(bound(sigma=sigma, code_weight=0.0), 0.0, 1.0)
    codes = []
    method.reconstruction.register_forward_pre_hook(lambda part, inputs: codes.append(inputs[0]))
    error = method.fit_loss(images, torch.zeros(8), torch.arange(8), 0)
    code = codes[0][:, 0]
    assert float(code.detach().mean()) == pytest.approx(expected, abs=0.03)
    middle = ((code > 0.1) & (code < 0.9)).float().mean()
    assert float(middle) == pytest.approx(1.0 if sigma == 0.0 else 0.087, abs=0.02)
    assert float(error.detach()) == pytest.approx(
        float((torch.sigmoid(code.detach()) - 0.5).square().mean()), rel=1e-5
    )
    method.code_weight = 2.0
    more = method.fit_loss(images, torch.zeros(8), torch.arange(8), 0) - error
    assert more.item() == pytest.approx(2.0 * codes[0].detach().square().mean().item(), rel=1e-4)


def test_refusals():
    with pytest.raises(UserError, match="test_sigma is 2"):
        bound(test_sigma=2)
    with pytest.raises(UserError, match="width is 5"):
        bound(width=5)
