"""HGD: examples of the bare classifier, made once, and the two guidances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks.pgd import Pgd
from purifiers.core.component import Classifier, frozen
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed
from purifiers.methods.hgd import Hgd

from .toys import INDICES, LABELS, SHAPE, toy


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


def kept(examples: Tensor) -> np.ndarray:
    """Examples at their images' indices, as a fit finds them."""
    rows = np.full((1 + int(INDICES.max()), *SHAPE), np.nan, np.float32)
    rows[INDICES.numpy()] = examples.numpy()
    return rows


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
        alone.kept_examples = [kept(pgd(classifier, images, LABELS, number))]
        apart += alone.fit_loss(images, LABELS, INDICES, 0).item()
    assert loss.item() == pytest.approx(apart, rel=1e-4)


def test_only_the_auto_encoder_gets_gradients(images: Tensor) -> None:
    classifier = toy(0)
    method = hgd(classifier)
    method.fit_loss(images, LABELS, INDICES, 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


# The examples


def test_examples_are_those_of_the_bare_classifier(images: Tensor) -> None:
    """Whatever the mates of their batch; of another classifier they are others."""
    method = hgd(toy(0), toy(1))
    whole = pgd(toy(0), images, LABELS)
    torch.testing.assert_close(method.example(0, images, LABELS, INDICES), whole)
    mixed = torch.tensor([5, 3, 0, 4])
    some = method.example(0, images[mixed], LABELS[mixed], INDICES[mixed])
    torch.testing.assert_close(some, whole[mixed])
    other = method.example(1, images, LABELS, INDICES)
    torch.testing.assert_close(other, pgd(toy(1), images, LABELS, 1))
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("guidance", ["class", "logits"])
def test_kept_examples_are_not_made_again(
    images: Tensor, guidance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the same; an example is found by its image's index."""
    method = hgd(toy(0), toy(1), guidance=guidance)
    made = method.fit_loss(images, LABELS, INDICES, 0)
    method.kept_examples = [
        kept(method.example(number, images, LABELS, INDICES)) for number in (0, 1)
    ]
    monkeypatch.setattr(Hgd, "example", lambda *_: pytest.fail("made again"))
    found = method.fit_loss(images, LABELS, INDICES, 0)
    assert found.item() == pytest.approx(made.item(), rel=1e-6)


def test_examples_know_no_dropout(images: Tensor) -> None:
    """Not even where the loss does: they are the same whenever they are made."""
    classifier = toy(0)
    classifier.head = nn.Sequential(nn.Dropout(0.5), classifier.head)
    frozen(classifier)
    method = hgd(classifier, dropout="train")
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        (target,) = method.targets()
        made.append(method.example(0, images, LABELS, INDICES))
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
