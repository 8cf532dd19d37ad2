"""HGD (Liao et al. 2018): a denoiser guided by the classifier, fitted on examples made once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core.errors import check_choice
from purifiers.core.noise import derive_seed
from purifiers.core.prepare import Prepared
from purifiers.methods._fitted_autoencoder import FittedAutoencoder, Makers, under_attack
from purifiers.methods._unet import DenoisingUnet

VERSION = 1
BUDGET = (
    "width",
    "norm_momentum",
    "steps",
    "step_size",
    "attack_precision",
    "compiled",
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "validation",
    "early_stopping",
)
LATER = ("compiled",)
PASSES = "0"
FIT_PASSES = "3 * steps + 4 * epochs"
SIZES = ("variant", "width")
OWN_PASSES = "1"
OWN_FIT_PASSES = "3 * epochs"
ENSEMBLE = True

GUIDANCES = ("class", "logits")


class Hgd(FittedAutoencoder):
    """Fits AE(x') with PGD examples x' of the bare classifier F; F(AE(.)) is never attacked.

    Each image's example is made when the image is first seen, and kept, at 4 bytes per pixel: HGD's
    are "pre-generated against the base model" (AdvAE, section 5). `lihebi/AdvAE` makes new ones in
    every epoch, from other random starts, at the price of an attack per image and epoch.

    Args:
        guidance: ``class``: CE(F(AE(x')), y), what AdvAE's authors ran as HGD. ``logits``: the mean
            of |F(AE(x')) - F(x)|, without labels, what Liao et al. propose (section 3.3, LGD).
        common: see :class:`FittedAutoencoder`. The variant may also be ``dunet``, Liao's own
            denoiser, whose first level has twice ``width`` channels. Liao's training is Adam .01,
            divided by 10 at 60 % and by 100 at 90 % of 100 epochs.
    """

    VARIANTS: ClassVar[Makers] = {**FittedAutoencoder.VARIANTS, "dunet": DenoisingUnet}

    def __init__(self, *, guidance: str = "class", **common: Any) -> None:
        super().__init__(**common)
        check_choice("Hgd: guidance", guidance, GUIDANCES)
        self.guidance = guidance
        self._examples: dict[tuple[int, int], Tensor] = {}

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """The guided loss of one batch, summed over the classifiers."""
        loss = images.new_zeros(())
        for number, target in enumerate(self.targets()):
            examples = self.examples(number, target, images, labels, indices)
            logits = target(self.autoencoder(examples))
            if self.guidance == "class":
                loss = loss + functional.cross_entropy(logits, labels)
            else:
                with torch.no_grad():
                    wanted = target(images)
                loss = loss + functional.l1_loss(logits, wanted)
        return loss

    def examples(
        self, number: int, target: Prepared, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Tensor:
        """The images' PGD examples against classifier ``number``, float32 (n, C, H, W)."""
        keys = [(number, index) for index in indices.tolist()]
        new = torch.tensor([key not in self._examples for key in keys])
        if new.any():
            rows = new.to(images.device)
            seed = derive_seed("hgd", number)
            with under_attack(target.module):  # no dropout: a continued fit makes the same again
                made = self.attack(target, images[rows], labels[rows], indices[new], seed).cpu()
            missing = [key for key, wanted in zip(keys, new.tolist(), strict=True) if wanted]
            self._examples.update(zip(missing, made, strict=True))
        return torch.stack([self._examples[key] for key in keys]).to(images.device)
