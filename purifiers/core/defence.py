"""A classifier behind a chain of purifiers, as one callable with a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purifiers.core.component import Classifier, Method, default_indices
from purifiers.core.errors import UserError

GRADIENTS = ("exact", "bpda")


class Defence:
    """Images to logits through ``methods`` in order, then ``classifier``.

    Args:
        classifier: frozen, in evaluation mode.
        methods: purifiers, applied first to last.
        gradient: ``"exact"`` differentiates through the purifiers; ``"bpda"`` runs them forward
            and takes the identity backward (Athalye et al. 2018, section 4.1).
        seed: decides the noise of random purifiers, with each image's index.
    """

    per_image = True

    def __init__(
        self,
        classifier: Classifier,
        methods: Sequence[Method] = (),
        gradient: str = "exact",
        seed: int = 0,
    ) -> None:
        if gradient not in GRADIENTS:
            raise UserError(f"gradient is {gradient!r}: choose one of {', '.join(GRADIENTS)}")
        self.classifier = classifier
        self.methods = tuple(methods)
        self.gradient = gradient
        self.seed = seed

    def purify(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Images after all purifiers, float32 (n, C, H, W) in [0, 1]."""
        where = default_indices(images, indices)
        for method in self.methods:
            images = method.purify(images, self.seed, where)
        return images

    def __call__(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits (n, classes)."""
        if not self.methods:
            return self.classifier(images)
        if self.gradient == "exact":
            return self.classifier(self.purify(images, indices))
        with torch.no_grad():
            purified = self.purify(images.detach(), indices)
        return self.classifier(_IdentityBackward.apply(images, purified))


class _IdentityBackward(torch.autograd.Function):
    """Forward: the purified images, to the bit. Backward: as if nothing had been done."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
