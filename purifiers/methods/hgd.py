"""HGD (Liao et al. 2018): a denoiser guided by the classifier, fitted on stored examples."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.modes import frozen_meanwhile
from purifiers.core.noise import derive_seed
from purifiers.core.traits import Fit, Network
from purifiers.methods._fitted_autoencoder import FittedAutoencoder, Makers
from purifiers.methods._unet import DenoisingUnet


def _dunet(channels: int, width: int, _: float) -> DenoisingUnet:
    return DenoisingUnet(channels, width)


class Hgd(FittedAutoencoder):
    """Fit AE on PGD examples x' of the bare classifier F; F(AE(.)) itself is never attacked.

    Each image has one example, made before the fit: HGD's are "pre-generated against the base
    model" (AdvAE, section 5). `lihebi/AdvAE` makes new examples in every epoch, from other random
    starts, at the cost of an attack per image and epoch.

    Args:
        guidance: ``class``: CE(F(AE(x')), y), which AdvAE's authors ran as HGD. ``logits``: the
            mean of |F(AE(x')) - F(x)|, without labels, which Liao et al. propose (section 3.3,
            LGD).
        common: see :class:`FittedAutoencoder`. The variant may also be ``dunet``, Liao's own
            denoiser, whose first level has twice ``width`` channels and which ignores
            ``norm_momentum``. Liao's training is Adam .01,
            divided by 10 at 60 % and by 100 at 90 % of 100 epochs.

    Raises:
        UserError: an unknown guidance.
    """

    traits = FittedAutoencoder.traits.replace(
        version=2,
        fit=Fit(passes="3 * steps + 4 * epochs", several_classifiers=True, stored_examples=True),
        network=Network(sized_by=("variant", "width"), passes="1", fit_passes="3 * epochs"),
    )

    VARIANTS: ClassVar[Makers] = {**FittedAutoencoder.VARIANTS, "dunet": _dunet}

    def __init__(self, *, guidance: Literal["class", "logits"] = "class", **common: Any) -> None:
        super().__init__(**common)
        self.guidance = guidance

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Guided loss of one batch, summed over the classifiers."""
        loss = images.new_zeros(())
        for number, target in enumerate(self.targets()):
            if self.stored_examples:
                stored = self.stored_examples[number][indices.numpy()]
                examples = torch.from_numpy(stored).to(images.device)
            else:
                examples = self.example(number, images, labels, indices)
            logits = target(self.autoencoder(examples))
            if self.guidance == "class":
                loss = loss + functional.cross_entropy(logits, labels)
            else:
                with torch.no_grad():
                    clean_logits = target(images)
                loss = loss + functional.l1_loss(logits, clean_logits)
        return loss

    def example(self, number: int, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        target = self.targets()[number]
        with frozen_meanwhile(target.module):  # no dropout: equal in every run
            return self.attack(target, images, labels, indices, derive_seed("hgd", number))
