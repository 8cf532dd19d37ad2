"""The last linear layer of a network, and a restorer in front of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purifiers
from purifiers.core.component import Method, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.evaluation import attacked_defence
from purifiers.core.heads import head_name, split, with_restorer

SHAPE = (1, 16, 16)
IMAGES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return frozen(purifiers.classifier("vgg", SHAPE, 10, depth=11, width=4))


class Doubled(nn.Module):
    def forward(self, embedding):
        return 2.0 * embedding


class Restoring(Method):
    """Leaves images alone and doubles the embedding."""

    traits = Method.traits.replace(restores=True)

    def purify(self, images, seed=0, indices=None):
        return images.clone()

    def equipped(self, classifier):
        return with_restorer(classifier, SHAPE, Doubled())


def expected(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    embedding = network.features(images, ("stage5",))[0].mean(dim=(2, 3))
    return network.head(2.0 * embedding)


def test_the_head_is_the_layer_that_gives_the_logits(network):
    assert head_name(network, SHAPE) == "head"
    unused = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 10))
    assert head_name(unused, SHAPE) == "3"


def test_a_network_that_ends_otherwise_is_refused():
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Softmax(dim=1))
    with pytest.raises(UserError, match="Sequential has no embedding to restore"):
        head_name(scaled, SHAPE)
    assert not scaled[1]._forward_hooks


def test_encoder_and_head_make_the_network(network):
    encoder, head = split(network, SHAPE)
    assert encoder(IMAGES).shape == (3, 32)
    torch.testing.assert_close(head(encoder(IMAGES)), network(IMAGES))
    assert isinstance(network.head, nn.Linear), "split changed the network"


def test_a_restorer_acts_before_the_head(network):
    logits = with_restorer(network, SHAPE, Doubled())(IMAGES)
    torch.testing.assert_close(logits, expected(network, IMAGES))
    assert not torch.allclose(logits, network(IMAGES))


def test_two_restorers_act_in_order(network):
    class Raised(nn.Module):
        def forward(self, embedding):
            return embedding + 1.0

    both = with_restorer(with_restorer(network, SHAPE, Doubled()), SHAPE, Raised())
    encoder, head = split(network, SHAPE)
    torch.testing.assert_close(both(IMAGES), head(2.0 * encoder(IMAGES) + 1.0))


@pytest.mark.parametrize("gradient", ["exact", "bpda"])
def test_a_defence_classifies_and_differentiates_through_it(network, gradient):
    truth = IMAGES.clone().requires_grad_()
    (gradient_expected,) = torch.autograd.grad(expected(network, truth)[:, 0].sum(), truth)
    plain = Defence(network, [Restoring()], gradient)
    prepared = attacked_defence(network, [Restoring()], 0, gradient=gradient)
    half = attacked_defence(network, [Restoring()], 0, gradient=gradient, precision="bfloat16")
    for defence in (plain, prepared, half.exact):
        leaf = IMAGES.clone().requires_grad_()
        logits = defence(leaf)
        torch.testing.assert_close(logits, expected(network, IMAGES), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(defence.classify(IMAGES), logits, rtol=1e-4, atol=1e-5)
        assert defence.classifier is network
        if defence is half.exact:
            assert not logits.requires_grad  # it judges only
            continue
        (found,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        torch.testing.assert_close(found, gradient_expected, rtol=1e-3, atol=1e-5)


def test_an_audit_scores_with_the_restorer(network):
    class Flipping(Restoring):
        def equipped(self, classifier):
            return with_restorer(classifier, SHAPE, nn.Hardtanh(5.0, 6.0))

    defence = Defence(network, [Flipping()])
    labels = defence(IMAGES).argmax(1)
    assert not torch.equal(labels, network(IMAGES).argmax(1))
    attack = purifiers.attack("fgsm", eps=0.0001)
    report = purifiers.audit(defence, IMAGES, labels, attacks=[attack], progress=False)
    clean = next(result for result in report.results if result.label == "clean")
    assert (clean.rows.predictions[0] == labels.numpy()).all()
