"""BIM against a hand calculation, and as PGD without its random start."""

from __future__ import annotations

import pytest
import torch

from purifiers.attacks.bim import Bim
from purifiers.attacks.pgd import Pgd
from purifiers.core.errors import UserError

EPS = 0.1


def test_by_hand():
    """Three steps of .04 end at the ball's edge of .1, or at the range's edge."""

    def model(x):
        score = (x * torch.tensor([[[[2.0, -1.0, 0.0]]]])).sum(dim=(1, 2, 3))
        return torch.stack([-score, score], dim=1)

    image, label = torch.tensor([[[[0.5, 0.07, 0.3]]]]), torch.tensor([0])
    made = [Bim(eps=EPS, step_size=0.04, steps=n)(model, image, label).flatten() for n in (1, 3)]
    torch.testing.assert_close(made[0], torch.tensor([0.54, 0.03, 0.3]))
    torch.testing.assert_close(made[1], torch.tensor([0.6, 0.0, 0.3]))


@pytest.mark.parametrize("stop", ["never", "success"])
def test_is_pgd_from_the_image(victim, stop):
    settings = {"eps": EPS, "step_size": 0.02, "steps": 8, "stop": stop}
    args = (victim.model, victim.images, victim.labels)
    adversarial = Bim(**settings)(*args)
    assert torch.equal(adversarial, Pgd(random_start=False, **settings)(*args, seed=9))
    assert victim.accuracy(adversarial) < 0.7 < victim.accuracy(victim.images)


def test_defaults_are_the_papers():
    """min(eps + 4, 1.25 eps) steps of one grey level."""
    attack = Bim()
    grey = attack.eps * 255
    assert attack.steps == min(grey + 4, 1.25 * grey)
    assert attack.step_size * 255 == 1.0


def test_wrong_parameters_are_refused():
    with pytest.raises(UserError, match="Bim: steps is 0"):
        Bim(steps=0)
    with pytest.raises(UserError, match=r"Bim: stop is 'always'"):
        Bim(stop="always")
