"""Colours and markers of the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Colours of Okabe & Ito, distinct for colour-blind readers."""

MARKERS = ("s", "D", "^", "v", "P", "X", "*", "p", "<", ">", "h", "8")
"""Filled markers, distinct without colour."""


def row_styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """One colour and marker per distinct label, in order; no pair repeats among the first 24."""
    return {
        label: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        for k, label in enumerate(dict.fromkeys(labels))
    }
