"""Trainings in lower precision, with upstream's statistics, and with a single attack step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import augment
from purifiers.methods.adv_ae import AdvAe
from purifiers.training._collapse import collapse_note, compared
from purifiers.training.madry import Madry
from purifiers.training.natural import Natural
from purifiers.training.trades import Trades

from . import toys
from .toys import INDICES, LABELS, SHAPE

RECIPE = Recipe(epochs=2, batch_size=4, learning_rate=0.1, weight_decay=0.5)
PIXELS = np.random.RandomState(0).randint(0, 256, (8, *SHAPE), dtype=np.uint8)
TRUTH = np.arange(8) % 3


def network() -> toys.Toy:
    """A trainable network without dropout, so that equal inputs give equal logits."""
    classifier = toys.toy(regularised=True)
    classifier.dropout = nn.Identity()
    return classifier.requires_grad_(True).train()


@pytest.fixture
def images():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def run(tmp_path, loss, module, watch=None, **changes):
    recipe = replace(RECIPE, **changes)
    path = tmp_path / "checkpoint"
    return fit(module, loss, PIXELS, TRUTH, recipe, 3, path, "run", "test", quiet=True, watch=watch)


# precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_of_the_loss(tmp_path, precision):
    """Convolutions in the declared precision; weights and loss in float32."""
    module, seen = network(), []

    def loss(images, labels, indices, seed):
        seen.append(module.convolution(images).dtype)
        return F.cross_entropy(module(images), labels)

    run(tmp_path, loss, module, precision=precision)
    assert set(seen) == {getattr(torch, precision)}
    assert all(value.dtype == torch.float32 for value in module.parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_changes_the_weights_a_little(tmp_path):
    ends = []
    for precision in ("float32", "bfloat16"):
        module = network()

        def loss(images, labels, indices, seed, module=module):
            return F.cross_entropy(module(images), labels)

        run(tmp_path / precision, loss, module, precision=precision)
        ends.append(torch.cat([value.flatten() for value in module.parameters()]))
    assert 0 < (ends[0] - ends[1]).abs().max() < 0.05


def test_unknown_precision():
    with pytest.raises(UserError, match="precision"):
        Natural(precision="bf16")


# decay and augmentation


@pytest.mark.parametrize(("decayed", "others"), [("all", 0.95), ("kernels", 1.0)])
def test_decayed_parameters(decayed, others):
    """With a zero gradient, a step of .1 and a decay of .5 multiply a parameter by .95."""
    module = network()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = replace(RECIPE, decayed=decayed).optimizer_for(module)
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in module.named_parameters():
        factor = 0.95 if value.dim() > 1 else others
        torch.testing.assert_close(value.detach(), factor * before[name])


@pytest.mark.parametrize("padding", [2, 4])
def test_shifts_reach_the_padding_and_no_further(padding):
    image = torch.zeros(400, 1, 11, 11)
    image[:, :, 5, 5] = 1.0
    rows = augment(image, "crop_flip", 1, padding).sum(dim=(1, 3)).argmax(dim=1) - 5
    assert (int(rows.min()), int(rows.max())) == (-padding, padding)


# statistics of batch normalisation


def running_mean(module, *batches):
    """Running mean after these batches, with momentum .1."""
    mean = torch.zeros(6)
    with torch.no_grad():
        for batch in batches:
            mean = 0.9 * mean + 0.1 * module.convolution(batch).mean(dim=(0, 2, 3))
    return mean


def test_trades_passes_clean_images_twice(monkeypatch, images):
    """As upstream: clean, adversarial, clean."""
    module, adversarial = network(), images.flip(0) * 0.5
    monkeypatch.setattr(Trades, "neighbours", lambda *_: adversarial)
    Trades().loss(module, images, LABELS, INDICES, 0)
    expected = running_mean(module, images, adversarial, images)
    torch.testing.assert_close(module.norm.running_mean, expected)


@pytest.mark.parametrize("statistics", ["adversarial", "clean"])
def test_madry_takes_running_statistics_from(monkeypatch, images, statistics):
    module, adversarial = network(), images.flip(0) * 0.5
    recipe = Madry(statistics=statistics)
    monkeypatch.setattr(recipe, "attack", lambda *_: adversarial)
    loss = recipe.loss(module, images, LABELS, INDICES, 0)
    source = images if statistics == "clean" else adversarial
    torch.testing.assert_close(module.norm.running_mean, running_mean(module, source))
    torch.testing.assert_close(loss, F.cross_entropy(module(adversarial), LABELS))


def test_advae_with_statistics_of_the_batch(images):
    """Attack and loss see the batch's statistics; running ones come from the clean batch alone."""
    classifier = toys.toy(regularised=True)
    with torch.no_grad():
        classifier.norm.running_mean.fill_(3.0)
    torch.manual_seed(5)
    method = AdvAe(width=4, eps=0.2, steps=1, step_size=0.1, norm_momentum=0.1, statistics="clean")
    method.bind(classifier, SHAPE)
    method.train()
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    kept, seen = classifier.norm.running_mean.clone(), []

    def attack(model, x, *rest):
        by_batch = classifier.norm.training and all(norm.training for norm in norms)
        seen.append((by_batch, classifier.dropout.training))
        model(0.1 * x)  # must leave no trace
        return 0.5 * x

    method.attack = attack
    method.fit_loss(images, LABELS, INDICES, 3).backward()
    got = [norm.running_mean.clone() for norm in norms]
    assert seen == [(True, False)]
    assert torch.equal(classifier.norm.running_mean, kept) and not classifier.norm.training
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        method.autoencoder(images)
    for norm, value in zip(norms, got, strict=True):
        torch.testing.assert_close(norm.running_mean, value)
    method.eval().fit_loss(images, LABELS, INDICES, 3)  # as for held-out images
    assert seen[1:] == [(False, False)]


# single-step training


class BySign(nn.Module):
    """Class 1 if the mean of an image is above .5."""

    def forward(self, images):
        total = (images - 0.5).flatten(1).sum(1)
        return torch.stack([-total, total], dim=1)


def test_compared_by_hand():
    """Eight images of one pixel at .5 + distance; eps .1 breaks those nearer than that."""
    distance = torch.tensor([0.02, 0.04, 0.06, 0.08, 0.12, 0.14, 0.16, 0.18])
    images = (0.5 + distance).view(8, 1, 1, 1)
    labels = torch.ones(8, dtype=torch.int64)
    result = compared(BySign(), images, 0.1, images, labels, torch.arange(8), 0)
    assert result == {"single_step": 1.0, "pgd": 0.5}


@pytest.mark.parametrize(
    ("pgd", "collapsed"), [(0.0, True), (0.19, True), (0.2, False), (0.4, False)]
)
def test_a_collapse_is_noted(pgd, collapsed):
    earlier = {"single_step": 0.3, "pgd": 0.3}
    note = collapse_note([earlier, {"single_step": 0.4, "pgd": pgd}])
    assert ("catastrophic overfitting: 40 %" in note) is collapsed
    assert (f"{100 * pgd:.0f} % under PGD-10" in note) is collapsed


@pytest.mark.parametrize("recipe", [Madry(steps=1), Trades(steps=1)])
def test_single_step_trainings_are_watched(images, recipe):
    module = network().eval()
    result = recipe.watch(module, images, LABELS, INDICES, 0)
    assert set(result) == {"single_step", "pgd"}
    assert recipe.note([{"single_step": 1.0, "pgd": 0.0}])


@pytest.mark.parametrize("recipe", [Madry(steps=2), Trades(steps=2), Natural()])
def test_others_are_not(images, recipe):
    assert recipe.watch(network().eval(), images, LABELS, INDICES, 0) == {}
    assert recipe.note([]) == ""


def test_watched_once_per_epoch_in_evaluation_mode_and_after_a_kill(tmp_path):
    """Two epochs of two steps; the kill in the last step repeats no measurement."""
    results = []
    for kill_at in (None, 3):
        module, calls, steps = network(), [], []

        def loss(images, labels, indices, seed, module=module, steps=steps, kill_at=kill_at):
            if len(steps) == kill_at:
                steps.append(-1)
                raise KeyboardInterrupt
            steps.append(seed)
            return F.cross_entropy(module(images), labels)

        def watch(module=module, calls=calls):
            assert not module.training and not torch.is_grad_enabled()
            calls.append(len(calls))
            return {"weight": float(module.head.weight.sum())}

        folder = tmp_path / str(kill_at)
        if kill_at:
            with pytest.raises(KeyboardInterrupt):
                run(folder, loss, module, watch, checkpoint_seconds=0.0)
            assert len(calls) == 1
        results.append(run(folder, loss, module, watch, checkpoint_seconds=0.0)["watched"])
        assert len(calls) == 2 and module.training
    assert results[0] == results[1] and len(results[0]) == 2
    assert results[0][0] != results[0][1]
