"""What every training recipe promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from purifiers.core.component import Classifier, build
from purifiers.core.formula import evaluate

SEED = 3


@pytest.fixture
def untrained() -> Classifier:
    from purifiers.classifiers.wide_resnet import WideResnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WideResnet((1, 16, 16), 10, depth=10, widen_factor=1, first_stride=2).train()


def counts(classifier: nn.Module) -> list[int]:
    """How many batches each batch normalisation has taken into its running statistics."""
    norms = [m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)]
    return [int(norm.num_batches_tracked) for norm in norms]


def test_loss_is_a_number_and_reaches_every_parameter(training, untrained, victim):
    loss = training.make().loss(untrained, victim.images, victim.labels, victim.indices, SEED)
    assert loss.dim() == 0 and torch.isfinite(loss) and loss > 0
    loss.backward()
    for name, parameter in untrained.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_only_the_seed_decides(training, untrained, victim):
    """Never the global generator; the images are left alone."""
    given, values = victim.images.clone(), []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            network = copy.deepcopy(untrained)
            made = training.make()
            values.append(made.loss(network, victim.images, victim.labels, victim.indices, SEED))
    assert torch.equal(*values)
    assert torch.equal(victim.images, given)


def test_the_network_is_left_in_training(training, untrained, victim):
    before = [p.clone() for p in untrained.parameters()]
    training.make().loss(untrained, victim.images, victim.labels, victim.indices, SEED)
    assert all(module.training for module in untrained.modules())
    assert all(p.requires_grad and p.grad is None for p in untrained.parameters())
    assert all(torch.equal(p, b) for p, b in zip(untrained.parameters(), before, strict=True))
    momenta = {m.momentum for m in untrained.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_an_inner_attack_leaves_no_trace_in_batch_normalisation(training, untrained, victim):
    """Only the forwards of the loss itself are counted, however long the attack."""
    if "steps" not in training.description.parameters:
        pytest.skip(f"{training.name} has no inner attack")
    counted = []
    for steps in (1, 4):
        network = copy.deepcopy(untrained)
        made = training.make(steps=steps)
        made.loss(network, victim.images, victim.labels, victim.indices, SEED)
        counted.append(counts(network))
    assert counted[0] == counted[1]
    assert 1 <= max(counted[0]) <= 3


def test_a_few_steps_lower_the_loss(training, untrained, victim, fit_briefly):
    made = training.make()

    def value() -> float:
        network = copy.deepcopy(untrained)
        return made.loss(network, victim.images, victim.labels, victim.indices, SEED).item()

    def loss(images, labels, indices, seed):
        return made.loss(untrained, images, labels, indices, seed)

    before = value()
    fit_briefly(untrained, loss, made.recipe, victim)
    assert value() < before


def test_defaults_make_a_recipe(training):
    made = build(training.cls)
    described = training.description
    assert not described.required
    assert made.recipe.epochs == described.parameters["epochs"]
    assert made.recipe.batch_size == described.parameters["batch_size"]
    assert evaluate(described.traits.passes, {**described.parameters, "images": 1}) > 0
