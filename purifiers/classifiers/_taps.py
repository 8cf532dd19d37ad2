"""Walking through a classifier's named parts and keeping what some of them give."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean


def tapped(classifier: Classifier, owner: str, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
    """What the parts named ``taps`` give, computing no further than the deepest of them.

    Args:
        classifier: its ``TAPS`` are attributes, modules that follow one another.
        owner: how messages call it.
        images: float32 (n, C, H, W) in [0, 1].

    Returns:
        One tensor per name, as its part gives it. Nothing depends on the images' values, so that
        the walk can be traced.

    Raises:
        UserError: it has no such part.
    """
    for tap in taps:
        if tap not in classifier.TAPS:
            raise UserError(f"{owner} has no tap {tap!r}{did_you_mean(tap, classifier.TAPS)}")
    found: dict[str, Tensor] = {}
    hidden = images
    for name in classifier.TAPS:
        hidden = getattr(classifier, name)(hidden)
        found[name] = hidden
        if all(tap in found for tap in taps):
            break
    return [found[tap] for tap in taps]
