"""Features of sequential classifiers: run the named parts and collect some of their outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean


def tapped(classifier: Classifier, owner: str, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
    """Outputs of the parts named ``taps``, without running anything deeper than these.

    Args:
        classifier: its ``TAPS`` are attributes: modules that are applied in this order.
        owner: name of the classifier in messages.
        images: float32 (n, C, H, W) in [0, 1].

    Returns:
        One tensor per name, as returned by its part. Control flow does not depend on the images'
        values, so this can be traced.

    Raises:
        UserError: the classifier has no such part.
    """
    for tap in taps:
        if tap not in classifier.TAPS:
            raise UserError(f"{owner} has no tap {tap!r}{did_you_mean(tap, classifier.TAPS)}")
    outputs: dict[str, Tensor] = {}
    hidden = images
    for name in classifier.TAPS:
        hidden = getattr(classifier, name)(hidden)
        outputs[name] = hidden
        if all(tap in outputs for tap in taps):
            break
    return [outputs[tap] for tap in taps]
