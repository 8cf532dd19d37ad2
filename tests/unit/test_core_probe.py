"""The signs of a weak attack: gradients that vanish and losses that do not rise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifiers.attacks.pgd import Pgd
from purifiers.core.component import Method
from purifiers.core.defence import Defence
from purifiers.core.probe import probe

ATTACK = Pgd(eps=0.1, step_size=0.025, steps=6, random_start=False)


class Round(Method):
    """The masked gradient of the books: fine grey levels, slope zero."""

    def purify(self, images, seed=0, indices=None):
        return (images * 15).round() / 15


def probed(victim, defence: Defence, adversarial: Tensor | None = None) -> dict:
    indices = torch.arange(len(victim.images))
    if adversarial is None:
        adversarial = ATTACK(defence, victim.images, victim.labels, 0, indices)
    return probe(defence, victim.images, adversarial, victim.labels, indices)


def test_a_masked_gradient_shows(victim):
    """Rounding: no gradient anywhere, and the attack moves nothing."""
    found = probed(victim, Defence(victim.model, [Round()], gradient="exact"))
    assert found["images"] == found["zero_gradient"] == 64
    assert found["nonfinite_gradient"] == found["loss_rose"] == found["moved"] == 0
    assert found["loss_adversarial"] == found["loss_clean"]


@pytest.mark.parametrize("methods", [[], [Round()]], ids=["undefended", "bpda"])
def test_an_honest_gradient_shows_nothing(victim, methods):
    found = probed(victim, Defence(victim.model, methods, gradient="bpda"))
    assert found["zero_gradient"] == found["nonfinite_gradient"] == 0
    assert found["loss_rose"] > 60
    assert found["moved"] == found["correct"] > 0
    assert found["loss_adversarial"] > found["loss_clean"] + 1


def test_probabilities_in_place_of_logits_are_counted(victim):
    defence = Defence(lambda images: victim.model(images).softmax(dim=1))
    assert probed(victim, defence)["probabilities"] == 64
    assert probed(victim, Defence(victim.model))["probabilities"] == 0


def test_a_gradient_that_is_not_finite_is_counted(victim):
    """The square root has none at black pixels, of which every digit has some but these."""

    class Root(Method):
        def purify(self, images, seed=0, indices=None):
            return images.sqrt()

    grey = victim.images.clamp(min=0.1)
    grey[:5] = victim.images[:5]
    assert all((image == 0).any() for image in grey[:5])
    indices = torch.arange(len(grey))
    found = probe(Defence(victim.model, [Root()]), grey, grey, victim.labels, indices)
    assert found["nonfinite_gradient"] == 5 and found["zero_gradient"] == 0


def test_without_gradients_only_losses_are_told(victim):
    defence = Defence(victim.model, gradient="none")
    brighter = (victim.images + 0.3).clamp(max=1.0)
    found = probed(victim, defence, brighter)
    assert found["zero_gradient"] is None and found["nonfinite_gradient"] is None
    with torch.no_grad():
        before, after = (
            torch.nn.functional.cross_entropy(victim.model(x), victim.labels, reduction="none")
            for x in (victim.images, brighter)
        )
    assert found["loss_clean"] == pytest.approx(float(before.mean()))
    assert found["loss_adversarial"] == pytest.approx(float(after.mean()))
    assert found["loss_rose"] == int((after > before).sum())
