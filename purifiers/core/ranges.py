"""Ranges of numeric parameters, declared as annotations: ``steps: Count``, ``momentum: Share``.

Planning reads them from a component's source; a component that is built in Python checks them
before its ``__init__`` runs.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

Count = int
"""A whole number of at least 1, such as steps."""

Several = int
"""A whole number of at least 2, such as images that share statistics."""

Whole = int
"""A whole number of at least 0, such as extra layers."""

Severity = int
"""A whole number from 1 to 5, as of a common corruption."""

Bits = int
"""A whole number from 1 to 8: bits of a pixel."""

Quality = int
"""A whole number from 1 to 100: quality of a JPEG file."""

Odd = int
"""An odd whole number of at least 1: side of a window around a pixel."""

Positive = float
"""A number above 0, such as a learning rate."""

NonNegative = float
"""A number of at least 0, such as a weight of a loss."""

Fraction = float
"""A number in [0, 1], such as a mixing weight."""

Share = float
"""A number in [0, 1), such as a momentum or the held-out part of the images."""

Chance = float
"""A number in (0, 1], such as the probability that a pixel is kept."""

Interior = float
"""A number in (0, 1), such as a time in a process, or the masked part of an image."""


@dataclass(frozen=True)
class Range:
    """The values that an annotation allows; nan and infinity are in none.

    Attributes:
        expected: description of a value, for error messages.
        whole: whole numbers only.
        low, high: the bounds.
        above, below: whether the bound itself is excluded.
        odd: odd numbers only.
    """

    expected: str
    whole: bool
    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    odd: bool = False

    def __contains__(self, value: object) -> bool:
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number = float(value)
        above = number > self.low if self.above else number >= self.low
        below = number < self.high if self.below else number <= self.high
        parity = not self.odd or number % 2 == 1
        return above and below and parity and math.isfinite(number)

    def converted(self, value: object) -> object:
        """A NumPy number as Python's, and 8.0 as 8 if whole; any other value unchanged."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return value
        if isinstance(value, numbers.Integral):
            return int(value)
        number = float(value)
        return int(number) if self.whole and number.is_integer() else number


RANGES = {
    "Count": Range("a whole number of at least 1", True, 1),
    "Several": Range("a whole number of at least 2", True, 2),
    "Whole": Range("a whole number of at least 0", True, 0),
    "Severity": Range("a whole number from 1 to 5", True, 1, 5),
    "Bits": Range("a whole number from 1 to 8", True, 1, 8),
    "Quality": Range("a whole number from 1 to 100", True, 1, 100),
    "Odd": Range("an odd whole number of at least 1", True, 1, odd=True),
    "Positive": Range("a number above 0", False, 0, above=True),
    "NonNegative": Range("a number of at least 0", False, 0),
    "Fraction": Range("a number in [0, 1]", False, 0, 1),
    "Share": Range("a number in [0, 1)", False, 0, 1, below=True),
    "Chance": Range("a number in (0, 1]", False, 0, 1, above=True),
    "Interior": Range("a number in (0, 1)", False, 0, 1, above=True, below=True),
}
"""Annotation to its range; :mod:`purifiers.core.numbers` has lengths."""
