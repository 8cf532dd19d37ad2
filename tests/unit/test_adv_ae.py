"""AdvAE: the loss of equations 7 and 8, what is attacked in it, and that a killed fit goes on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from purifiers.core.component import Classifier, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed
from purifiers.methods.adv_ae import AdvAe
from purifiers.methods.aid import Aid

from . import toys
from .toys import INDICES, LABELS, SHAPE, Toy


def toy(seed: int) -> Toy:
    return toys.toy(seed, regularised=True)


def advae(*classifiers: Classifier, count: int = 100, **parameters: Any) -> AdvAe:
    torch.manual_seed(5)
    chosen: dict[str, Any] = {"width": 4, "eps": 0.2, "steps": 3, "step_size": 0.1}
    method = AdvAe(**chosen | parameters)
    method.bind(classifiers[0], SHAPE)
    method.fit_on(classifiers, count)
    return method.train()


def attacks_add(method: AdvAe, delta: Tensor | float) -> list[tuple[Any, ...]]:
    """Replace the training attack by one that adds ``delta``; returns the list of its calls."""
    calls: list[tuple[Any, ...]] = []

    def attack(model: Any, images: Tensor, *rest: Any) -> Tensor:
        calls.append((model, images, *rest))
        return images + delta

    method.attack = attack  # type: ignore[method-assign]
    return calls


def attacks_kept(method: AdvAe) -> list[Tensor]:
    """Listen to the training attack; returns the list of the examples it makes."""
    made: list[Tensor] = []
    own = method.attack

    def attack(*given: Any) -> Tensor:
        made.append(own(*given))
        return made[-1]

    method.attack = attack  # type: ignore[method-assign]
    return made


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """By its formula, in NumPy."""
    values = logits.detach().double().numpy()
    shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    return float(-np.log(shares[np.arange(len(labels)), labels.numpy()]).mean())


# The loss


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_equation_7_by_hand(images: Tensor, weight: float) -> None:
    """CE(F(AE(x + d)), y) + lambda D(AE(x), x), batch normalisation of AE over the batch."""
    classifier = toy(0)
    method = advae(classifier, reconstruction_weight=weight)
    calls = attacks_add(method, 0.05)
    loss = method.fit_loss(images, LABELS, INDICES, 31)

    ((_, attacked, labels, where, seed, share),) = calls
    assert attacked is images and labels is LABELS and where is INDICES
    assert seed == derive_seed(31, 0) and share == 1.0
    expected = cross_entropy(classifier(method.autoencoder(images + 0.05)), LABELS)
    z, x = method.autoencoder.decoded(images).double(), images.double()
    p = torch.sigmoid(z)
    expected += weight * -(x * p.log() + (1 - x) * (1 - p).log()).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_equation_8_by_hand(images: Tensor) -> None:
    """The sum over the classifiers of equation 7, the reconstruction in every summand."""
    classifiers = [toy(seed) for seed in range(3)]
    method = advae(*classifiers, reconstruction_weight=0.5)
    calls = attacks_add(method, 0.05)
    together = method.fit_loss(images, LABELS, INDICES, 31)
    assert len({call[4] for call in calls}) == len(calls) == 3  # starts of their own
    apart = 0.0
    for classifier, call in zip(classifiers, calls, strict=True):
        torch.testing.assert_close(call[0].classifier(images), classifier(images))
        alone = advae(classifier, reconstruction_weight=0.5)
        attacks_add(alone, 0.05)
        apart += alone.fit_loss(images, LABELS, INDICES, 31).item()
    assert together.item() == pytest.approx(apart, rel=1e-5)


# The attack


def test_pgd_goes_through_auto_encoder_and_classifier(images: Tensor) -> None:
    """In evaluation mode, with true labels; and it finds a higher loss than random noise."""
    classifier = toy(0)
    method = advae(classifier, steps=10, step_size=0.04)
    for parameter in method.parameters():
        parameter.data.mul_(2.0)  # lively, so that the image matters
    seen: list[Tensor] = []
    own = method.attack

    def spy(model: Any, x: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        assert not method.training and not method.autoencoder.training
        assert not any(p.requires_grad for p in method.parameters())
        torch.testing.assert_close(model(x), classifier(method.autoencoder(x)))
        assert labels is LABELS
        seen.append(own(model, x, labels, *rest))
        return seen[-1]

    method.attack = spy  # type: ignore[method-assign]
    method.fit_loss(images, LABELS, INDICES, 3)
    (adversarial,) = seen
    assert (adversarial - images).abs().max() <= 0.2 + 1e-6
    frozen(method)
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).sign()
    noisy = (images + 0.2 * signs).clamp(0, 1)
    losses = [
        functional.cross_entropy(classifier(method.purify(x)), LABELS)
        for x in (images, noisy, adversarial)
    ]
    assert losses[2] > losses[0] + 3 * (losses[1] - losses[0]).abs()


def test_a_low_precision_is_the_attacks_alone(images: Tensor) -> None:
    """Examples as strong, from bfloat16 products; what they teach is computed in float32."""

    def gained(precision: str) -> float:
        """By how much the examples raise the loss."""
        classifier = toy(0)
        method = advae(classifier, steps=10, step_size=0.04, attack_precision=precision)
        dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            dtypes[method.training].add(output.dtype)

        method.autoencoder.decoder1.register_forward_hook(note)
        method.targets()[0].module.head.register_forward_hook(note)
        made = attacks_kept(method)
        loss = method.fit_loss(images, LABELS, INDICES, 3)
        loss.backward()
        assert dtypes == {True: {torch.float32}, False: {getattr(torch, precision)}}
        (adversarial,) = made
        assert loss.dtype == adversarial.dtype == torch.float32
        assert 0.19 < (adversarial - images).abs().max() <= 0.2 + 1e-6
        frozen(method)
        before, after = (
            functional.cross_entropy(classifier(method.purify(x)), LABELS).item()
            for x in (images, adversarial)
        )
        return after - before

    assert gained("bfloat16") > 0.9 * gained("float32") > 0


def test_a_compiled_fit_learns_the_same(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without generated code, which needs a compiler of C++."""
    torch.compiler.reset()
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))

    def learned(compiled: bool) -> list[Tensor]:
        """Examples, losses and gradients of the auto-encoder."""
        method = advae(toy(0), compiled=compiled)
        made: list[Tensor] = attacks_kept(method)
        for count in (6, 4):
            loss = method.fit_loss(images[:count], LABELS[:count], INDICES[:count], 3)
            made += [loss, *torch.autograd.grad(loss, list(method.autoencoder.parameters()))]
        return made

    plain = learned(compiled=False)
    assert counted.frame_count == 0
    fast = learned(compiled=True)
    assert counted.frame_count > 1
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_the_attack_leaves_the_auto_encoder_as_it_was(images: Tensor) -> None:
    """Neither gradients nor running statistics nor modes; training then moves the statistics."""
    classifier = toy(0)
    method = advae(classifier)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    own = method.attack

    def spy(*arguments: Any) -> Tensor:
        made = own(*arguments)
        assert all(p.grad is None for p in method.parameters())
        assert all(torch.equal(v, before[n]) for n, v in method.state_dict().items())
        return made

    method.attack = spy  # type: ignore[method-assign]
    loss = method.fit_loss(images, LABELS, INDICES, 3)
    assert all(part.training for part in method.modules())
    assert all(p.requires_grad and p.grad is None for p in method.parameters())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert not torch.equal(
        method.state_dict()["autoencoder.encoder1.norm.running_mean"],
        before["autoencoder.encoder1.norm.running_mean"],
    )
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


def test_predicted_labels(images: Tensor) -> None:
    """What the attacked model says of the clean image; for a model that is always right, no
    change."""
    method = advae(toy(0), attack_labels="predicted")
    defence = Defence(method.targets()[0], [frozen(method)])
    said = defence(images).argmax(dim=1)
    other = (said + 1) % 3
    mine, theirs = (method.attack(defence, images, y, INDICES, 3) for y in (said, other))
    assert torch.equal(mine, theirs)
    method.attack_labels = "true"
    assert torch.equal(method.attack(defence, images, said, INDICES, 3), mine)
    assert not torch.equal(method.attack(defence, images, other, INDICES, 3), mine)


@pytest.mark.parametrize("dropout", ["eval", "train"])
def test_dropout_of_the_classifier(images: Tensor, dropout: str) -> None:
    """Only while the auto-encoder is trained, not for held-out images; nothing else of the
    classifier is ever in training mode."""
    classifier = toy(0)
    method = advae(classifier, dropout=dropout)
    attacks_add(method, 0.0)

    def losses() -> set[float]:
        made = [method.fit_loss(images, LABELS, INDICES, 0) for _ in range(5)]
        return {round(float(loss.detach()), 5) for loss in made}

    assert (len(losses()) > 1) is (dropout == "train")
    (target,) = method.targets()
    modes = {type(part): part.training for part in target.module.modules()}
    assert modes.pop(nn.Dropout) is (dropout == "train")
    assert not any(modes.values())
    method.eval()
    assert len(losses()) == 1 and not classifier.training


# The ramp of eps


def test_eps_grows_over_its_share_of_the_training(images: Tensor) -> None:
    """100 images less 10 held out, in batches of 30, 4 epochs: 12 batches, of which half ramp."""
    method = advae(toy(0), eps_ramp=0.5, epochs=4, batch_size=30)
    calls = attacks_add(method, 0.0)
    for _ in range(8):
        method.fit_loss(images, LABELS, INDICES, 0)
    assert [call[5] for call in calls] == pytest.approx([n / 6 for n in range(1, 7)] + [1, 1])
    method.eval()
    method.batches.zero_()
    method.fit_loss(images, LABELS, INDICES, 0)
    assert calls[-1][5] == 1.0 and int(method.batches) == 0


def test_a_share_shortens_eps_and_steps(images: Tensor) -> None:
    """Of a linear model with two classes, whose gradient has the same signs everywhere."""
    method = advae(toy(0), steps=1)
    weights = torch.randn(64, 2, generator=torch.Generator().manual_seed(4))
    inner, labels = images.clamp(0.3, 0.7), LABELS % 2
    whole, half = (
        method.attack(lambda x: x.flatten(1) @ weights, inner, labels, INDICES, 3, share) - inner
        for share in (1.0, 0.5)
    )
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=0)
    assert whole.abs().max() == pytest.approx(0.2, abs=1e-6)


def test_a_ramp_needs_the_number_of_images(images: Tensor) -> None:
    method = AdvAe(width=4, eps_ramp=0.5)
    method.bind(toy(0), SHAPE)
    with pytest.raises(UserError, match="call fit_on"):
        method.train().fit_loss(images, LABELS, INDICES, 0)
    method.eval().fit_loss(images, LABELS, INDICES, 0)


# Fitting


def train(method: AdvAe, images: Tensor, path: Path, loss: Callable[..., Tensor]) -> dict[str, Any]:
    recipe = replace(method.recipe, checkpoint_seconds=0.0)
    pixels = (images * 255).byte().numpy()
    return fit(method.train(), loss, pixels, LABELS.numpy(), recipe, 0, path, "advae", "advae")


SHORT: dict[str, Any] = {
    **{"epochs": 6, "batch_size": 3, "eps_ramp": 0.5, "count": 6, "validation": 0.2},
    "learning_rate": 0.02,
}


def test_a_killed_fit_continues_with_the_same_bits(images: Tensor, tmp_path: Path) -> None:
    """The ramp, too, goes on where it was."""
    whole = advae(toy(0), **SHORT)
    told = train(whole, images, tmp_path / "whole", whole.fit_loss)
    broken = advae(toy(0), **SHORT)
    left = 5

    def dies(*batch: Any) -> Tensor:
        nonlocal left
        left -= broken.training
        if left < 0:
            raise KeyboardInterrupt
        return broken.fit_loss(*batch)

    with pytest.raises(KeyboardInterrupt):
        train(broken, images, tmp_path / "broken", dies)
    again = advae(toy(0), **SHORT)
    resumed = train(again, images, tmp_path / "broken", again.fit_loss)
    assert resumed.pop("train_seconds") > 0.0 < told.pop("train_seconds")  # never twice the same
    assert resumed == told
    assert int(again.batches) == told["best_epoch"] * 2
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_fitting_resists_the_attack(images: Tensor, tmp_path: Path) -> None:
    """On the very images it is fitted on; the classifier stays as it was."""
    classifier = toy(0)
    kept = {name: value.clone() for name, value in classifier.state_dict().items()}
    method = advae(
        classifier,
        **SHORT | {"epochs": 150, "batch_size": 6, "validation": 0.0, "early_stopping": 0},
        **{
            "width": 8,
            "eps": 0.1,
            "step_size": 0.05,
            "norm_momentum": 0.2,
            "schedule": "one_cycle",
        },
    )

    def robust_loss() -> float:
        with torch.no_grad():
            method.eval()
            return float(method.fit_loss(images, LABELS, INDICES, 0))

    before = robust_loss()
    train(method, images, tmp_path / "checkpoint", method.fit_loss)
    assert robust_loss() < 0.75 * before
    assert not classifier.training
    assert all(torch.equal(value, kept[name]) for name, value in classifier.state_dict().items())


def test_weights_do_not_depend_on_the_classifier(images: Tensor) -> None:
    """What was fitted on one protects another: the same images, and no weights of either."""
    method = frozen(advae(toy(0)))
    other = AdvAe(width=4)
    other.bind(toy(1), SHAPE)
    other.load_state_dict(method.state_dict())
    frozen(other)
    assert torch.equal(other.purify(images), method.purify(images))
    assert all(name.startswith("autoencoder.") or name == "batches" for name in other.state_dict())
    alone = AdvAe(width=4)
    alone.bind(None, SHAPE)
    assert frozen(alone).purify(images).shape == images.shape
    with pytest.raises(UserError, match="AdvAe: bind a classifier before fitting"):
        alone.fit_loss(images, LABELS, INDICES, 0)


def test_defaults_are_the_papers() -> None:
    """Section 4.1 for MNIST."""
    method = AdvAe()
    assert (method.variant, method.eps, method.steps, method.step_size) == ("mnist", 0.3, 40, 0.01)
    assert (method.reconstruction_weight, method.eps_ramp) == (0.0, 0.0)
    recipe = method.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 1e-3, 32)
    assert (recipe.schedule, recipe.learning_rate_decay, recipe.patience) == ("plateau", 0.5, 4)
    assert (recipe.early_stopping, recipe.validation) == (10, 0.1)
    assert not math.isinf(recipe.epochs) and recipe.augmentation == "none"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"variant": "unte"}, r"variant is 'unte'.*did you mean 'unet'"),
        ({"variant": "dunet"}, "choose one of mnist, unet, unet_paper"),
        ({"attack_labels": "ture"}, "did you mean 'true'"),
        (
            {"attack_precision": "bf16"},
            "attack_precision is 'bf16': choose one of float32, tf32, bfloat16",
        ),
        ({"dropout": "on"}, "dropout is 'on': choose one of eval, train"),
        ({"eps_ramp": 2}, r"eps_ramp is 2, but takes a number in \[0, 1\]"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
    ],
)
def test_wrong_choices_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdvAe(**parameters)


def test_methods_that_listen_to_one_classifier_refuse_several() -> None:
    with pytest.raises(UserError, match="Aid cannot be fitted on several classifiers"):
        Aid().fit_on([toy(0), toy(1)], 10)
    Aid().fit_on([toy(0)], 10)
