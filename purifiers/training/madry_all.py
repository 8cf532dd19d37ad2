"""Adversarial training against several attacks at once, in Laidlaw et al. (2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.attacks.pgd import Pgd
from purifiers.attacks.pgd_l2 import PgdL2
from purifiers.attacks.stadv import Stadv
from purifiers.core.component import Attack, Classifier
from purifiers.core.noise import generator
from purifiers.core.numbers import Length, Radius
from purifiers.core.ranges import Count, Positive
from purifiers.training._perceptual_advex import PerceptualAdvex


class MadryAll(PerceptualAdvex):
    """Cross entropy on PGD examples in the L-infinity and L2 norms and on StAdv's.

    Simplified: upstream has ReColorAdv as a fourth attack.

    Args:
        mixture: ``random``: one attack per batch, drawn with the seed. ``average``: the mean loss
            of all. ``maximum``: each image's largest loss. Upstream's options are
            ``--randomize_attack``, none and ``--maximize_attack``. All examples of a batch go
            through the network in one pass, as there.
        eps: L-infinity radius on the [0, 1] scale; 8/255 in `cassidylaidlaw/perceptual-advex`, as
            the values below.
        radius: L2 radius over all pixels on the same scale.
        bound: largest flow of StAdv, a fraction of half the image's side.
        steps: number of steps of each attack. PGD's are a radius / sqrt(steps) long.
        common: see :class:`purifiers.training._perceptual_advex.PerceptualAdvex`.

    Raises:
        UserError: an unknown mixture.
    """

    traits = PerceptualAdvex.traits.replace(
        version=1,
        passes="epochs * (9 * steps + 10)",  # a third of it for a random mixture
    )

    def __init__(
        self,
        *,
        mixture: Literal["random", "average", "maximum"] = "maximum",
        eps: Length = "8/255",
        radius: Radius = 1.0,
        bound: Positive = 0.05,
        steps: Count = 10,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.mixture = mixture
        share = 1 / steps**0.5
        self.attacks: tuple[Attack, ...] = (
            Pgd(eps=eps, steps=steps, step_size=share * eps),
            PgdL2(radius=radius, steps=steps, step_length=share * radius),
            Stadv(bound=bound, steps=steps, smoothness=0.0025 / bound, returned="last"),
        )

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        attacks = self.attacks
        if self.mixture == "random":
            draw = torch.randint(len(attacks), (1,), generator=generator(seed, "madry_all"))
            attacks = (attacks[int(draw)],)
        adversarial = torch.cat(
            [self.examples(a, classifier, images, labels, indices, seed) for a in attacks]
        )
        losses = functional.cross_entropy(
            classifier(adversarial), labels.repeat(len(attacks)), reduction="none"
        ).view(len(attacks), len(images))
        return losses.amax(dim=0).mean() if self.mixture == "maximum" else losses.mean()
