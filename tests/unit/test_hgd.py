"""HGD: examples of the bare classifier, made once, and the two guidances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks.pgd import Pgd
from purifiers.core.component import Classifier, frozen
from purifiers.core.errors import UserError
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed
from purifiers.methods.hgd import Hgd

SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
INDICES = torch.tensor([7, 3, 900, 4, 12, 0])


class Toy(Classifier):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 3)
        self.convolution = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.convolution(images)).mean(dim=(2, 3)))


def toy(seed: int) -> Toy:
    torch.manual_seed(seed)
    classifier = Toy()
    for parameter in classifier.parameters():
        parameter.data.mul_(4.0)
    frozen(classifier)
    return classifier


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def hgd(*classifiers: Classifier, **parameters: Any) -> Hgd:
    torch.manual_seed(5)
    chosen: dict[str, Any] = {"width": 4, "eps": 0.2, "steps": 3, "step_size": 0.1}
    method = Hgd(**chosen | parameters)
    method.bind(classifiers[0], SHAPE)
    method.fit_on(classifiers, 100)
    return method.train()


def logits_of(method: Hgd, classifier: Classifier, made: Tensor) -> np.ndarray:
    with torch.no_grad():
        return classifier(method.autoencoder(made)).double().numpy()


def pgd(classifier: Classifier, images: Tensor, labels: Tensor, number: int = 0) -> Tensor:
    attack = Pgd(eps=0.2, steps=3, step_size=0.1)
    return attack(classifier, images, labels, derive_seed("hgd", number), INDICES)


# The two guidances


def test_class_guidance_by_hand(images: Tensor) -> None:
    """CE(F(AE(x')), y), x' the PGD examples of F alone."""
    classifier = toy(0)
    method = hgd(classifier)
    loss = method.fit_loss(images, LABELS, INDICES, 31)
    values = logits_of(method, classifier, pgd(classifier, images, LABELS))
    shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(6), LABELS.numpy()]).mean()
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)


def test_logits_guidance_by_hand(images: Tensor) -> None:
    """The mean of |F(AE(x')) - F(x)|; no label enters it."""
    classifier = toy(0)
    method = hgd(classifier, guidance="logits", attack_labels="predicted")
    loss = method.fit_loss(images, LABELS, INDICES, 31)
    with torch.no_grad():
        clean = classifier(images)
    values = logits_of(method, classifier, pgd(classifier, images, clean.argmax(dim=1)))
    expected = np.abs(values - clean.double().numpy()).mean()
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)
    other = hgd(classifier, guidance="logits", attack_labels="predicted")
    again = other.fit_loss(images, (LABELS + 1) % 3, INDICES, 31)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("guidance", ["class", "logits"])
def test_ensemble_adds_up(images: Tensor, guidance: str) -> None:
    classifiers = [toy(seed) for seed in range(3)]
    together = hgd(*classifiers, guidance=guidance)
    loss = together.fit_loss(images, LABELS, INDICES, 0)
    apart = 0.0
    for number, classifier in enumerate(classifiers):
        alone = hgd(classifier, guidance=guidance)
        for index, made in zip(
            INDICES.tolist(), pgd(classifier, images, LABELS, number), strict=True
        ):
            alone._examples[0, index] = made
        apart += alone.fit_loss(images, LABELS, INDICES, 0).item()
    assert loss.item() == pytest.approx(apart, rel=1e-4)


def test_only_the_auto_encoder_gets_gradients(images: Tensor) -> None:
    classifier = toy(0)
    method = hgd(classifier)
    method.fit_loss(images, LABELS, INDICES, 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


# The examples


def test_each_image_is_attacked_once(images: Tensor) -> None:
    """Whatever the seed of the step and the mates of its batch."""
    method = hgd(toy(0))
    (target,) = method.targets()
    attacked: list[int] = []
    own = method.attack

    def spy(model: Any, x: Tensor, labels: Tensor, where: Tensor, *rest: Any) -> Tensor:
        assert model is target
        attacked.extend(where.tolist())
        return own(model, x, labels, where, *rest)

    method.attack = spy  # type: ignore[method-assign]
    first = method.examples(0, target, images[:4], LABELS[:4], INDICES[:4])
    mixed = torch.tensor([5, 3, 0, 4])
    second = method.examples(0, target, images[mixed], LABELS[mixed], INDICES[mixed])
    assert attacked == [*INDICES[:4].tolist(), *INDICES[[5, 4]].tolist()]
    assert torch.equal(second[1], first[3]) and torch.equal(second[2], first[0])
    whole = pgd(toy(0), images, LABELS)
    torch.testing.assert_close(first, whole[:4])
    torch.testing.assert_close(second, whole[mixed])
    again = method.examples(0, target, images, LABELS, INDICES)
    assert len(attacked) == 6
    torch.testing.assert_close(again, whole)


def test_examples_of_different_classifiers_are_kept_apart(images: Tensor) -> None:
    method = hgd(toy(0), toy(1))
    method.fit_loss(images, LABELS, INDICES, 0)
    assert len(method._examples) == 12
    one, two = (torch.stack([method._examples[n, i] for i in INDICES.tolist()]) for n in (0, 1))
    assert not torch.equal(one, two)


def test_a_killed_fit_continues(images: Tensor, tmp_path: Path) -> None:
    """The examples are made anew, and are the same."""
    short: dict[str, Any] = {
        **{"epochs": 6, "batch_size": 3, "learning_rate": 0.02, "validation": 0.2},
        "variant": "dunet",
    }

    def run(method: Hgd, path: Path, after: int | None = None) -> dict[str, Any]:
        left = after

        def loss(*batch: Any) -> Tensor:
            nonlocal left
            if left is not None and method.training:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            return method.fit_loss(*batch)

        recipe = replace(method.recipe, checkpoint_seconds=0.0)
        pixels = (images * 255).byte().numpy()
        return fit(method.train(), loss, pixels, LABELS.numpy(), recipe, 0, path, "hgd", "hgd")

    whole, again = hgd(toy(0), **short), hgd(toy(0), **short)
    told = run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(hgd(toy(0), **short), tmp_path / "broken", after=5)
    found = run(again, tmp_path / "broken")
    assert found["steps"] == told["steps"] == 12
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-4, rtol=1e-3)


def test_examples_know_no_dropout(images: Tensor) -> None:
    """They are kept in memory alone: a continued fit makes them again, at another step."""
    classifier = toy(0)
    classifier.head = nn.Sequential(nn.Dropout(0.5), classifier.head)
    frozen(classifier)
    method = hgd(classifier, dropout="train")
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        method._examples.clear()
        (target,) = method.targets()
        made.append(method.examples(0, target, images, LABELS, INDICES))
        dropout = [part for part in target.module.modules() if isinstance(part, nn.Dropout)]
        assert [part.training for part in dropout] == [True]
    assert torch.equal(*made)


def test_dunet_has_twice_the_width() -> None:
    """The same ``width`` means the authors' own denoiser: 64 channels at its first level."""
    method = Hgd(variant="dunet")
    method.bind(None, (3, 32, 32))
    assert sum(p.numel() for p in method.parameters()) == 11_033_984
    assert next(iter(method.state_dict())).startswith("autoencoder.")


def test_wrong_guidance_is_refused() -> None:
    with pytest.raises(UserError, match=r"Hgd: guidance is 'logit'.*did you mean 'logits'"):
        Hgd(guidance="logit")
