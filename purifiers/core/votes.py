"""Fewest votes of randomised smoothing that can decide anything."""

from __future__ import annotations

import math


def fewest_for_prediction(alpha: float) -> int:
    """Fewest votes with which agreement of all passes the test: 2 (1/2)^n <= alpha."""
    return math.ceil(math.log2(2.0 / alpha) - 1e-12)


def fewest_for_certificate(alpha: float) -> int:
    """Fewest votes with which agreement of all certifies a radius: alpha^(1/n) > 1/2."""
    return math.floor(math.log2(1.0 / alpha) + 1e-12) + 1
