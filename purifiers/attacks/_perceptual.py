"""Neural perceptual distance (Laidlaw et al. 2021): LPIPS in any network's own layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from purifiers.core.errors import UserError
from purifiers.core.taps import features_and_logits, layer_taps, tapped_features
from purifiers.core.target import Target

TINY = 1e-10  # `cassidylaidlaw/perceptual-advex`: keeps the norm of a dead position above 0


def embedding(activations: Sequence[Tensor]) -> Tensor:
    """phi(x): the L2 distance of two images' embeddings is their perceptual distance.

    Each position of each layer is normalised over its channels and divided by the square root of
    the layer's number of positions (Laidlaw et al. 2021, section 3, there without a learned weight
    per channel, unlike Zhang et al. 2018).

    Args:
        activations: (n, channels, height, width) per layer.

    Returns:
        float32 (n, d).
    """
    parts = []
    for layer in activations:
        # a square root at 0 has no finite gradient
        length = (layer.square().sum(dim=1, keepdim=True) + TINY**2).sqrt() + TINY
        positions = layer.shape[2] * layer.shape[3]
        parts.append((layer / (length * positions**0.5)).flatten(1).float())
    return torch.cat(parts, dim=1)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Perceptual distances (n,) between images with these embeddings (n, d)."""
    return ((first - second).square().sum(dim=1) + TINY**2).sqrt()


class Perception:
    """The layers of the attacked classifier in which distances are measured.

    Images are not purified before.

    Args:
        target: the attacked model: a network, or a defence, whose classifier is taken.
        taps: names of layers; (): those of :func:`purifiers.core.taps.layer_taps`.

    Raises:
        UserError: the model is a plain function.
    """

    def __init__(self, target: Target, taps: Sequence[str]) -> None:
        self._target, self._taps = target, tuple(taps)
        own = getattr(target.model, "activations", None)
        self._own: Callable[..., list[Tensor]] | None = own
        self._network: nn.Module | None = None
        if own is not None:
            return
        if not isinstance(target.model, nn.Module):
            raise UserError(
                "this attack measures distances in a network's layers, and a plain function has "
                "none: attack the network itself or a Defence"
            )
        self._network = target.model
        self._taps = self._taps or layer_taps(target.model)

    @property
    def bare(self) -> bool:
        """Whether the attacked model is the network itself, so that one pass gives both."""
        return self._network is not None

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (n, d), differentiable."""
        if self._own is not None:
            return embedding(self._own(images, self._taps))
        assert self._network is not None
        return embedding(tapped_features(self._network, images, self._taps))

    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (n, d) and logits (n, classes) of one pass, for a ``bare`` model."""
        assert self._network is not None
        activations, output = features_and_logits(self._network, images, self._taps)
        return embedding(activations), self._target.logits_of(output, images)
