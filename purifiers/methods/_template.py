"""Template of a purifier; replace this line by: what it does, authors, year.

Copy this file to ``<name>.py`` and rename the class to the CamelCase of ``<name>``. No list has to
be edited. The first line of the module docstring is the method's summary (15 to 120 characters).

The contract tests require of every purifier:

- float32 output of the same shape in [0, 1];
- the same output for the same seed, whatever the batch size;
- clean accuracy above chance on a small trained network, and an attack can run through it;
- equal output after saving and loading; no weights of the classifier are saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifiers.core.component import Method
from purifiers.core.ranges import Count
from purifiers.core.traits import MethodTraits


class Template(Method):
    """Round every pixel to ``levels`` grey levels (name the section or equation here).

    Args:
        levels: number of levels, at least 2; our choice (name the source of each default).
    """

    traits = MethodTraits(
        version=1,  # raise it whenever the output changes; stored results are then recomputed
        passes="0",  # classifier passes per purified image; forward and backward count 3
        random=False,  # True if two seeds give two outputs
        differentiable=False,  # True if `purify` has a useful gradient; else attacks use bpda
        fit=None,  # Fit(...) if it is fitted before use; then also implement `fit_loss`
    )

    def __init__(self, *, levels: Count = 16) -> None:
        super().__init__()
        self.levels = levels

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return (images * (self.levels - 1)).round() / (self.levels - 1)
