"""Pictures of per-image values: histograms with their AUC, and certified accuracy."""

import numpy as np
import pytest

from purifiers.report.certified import certified_curve
from purifiers.report.histograms import area_under_curve


def test_area_under_the_curve_by_hand():
    """Of the six pairs of a natural and an attacked image, five are in order."""
    assert area_under_curve(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(5 / 6)
    assert area_under_curve(np.array([1.0]), np.array([])) is None
    assert area_under_curve(None, np.array([1.0])) is None


def test_certified_accuracy_by_hand():
    """Of four images one has no certificate; half have a radius of at least 0.5."""
    radii, shares = certified_curve(np.array([0.5, 0.0, 0.2, 0.9]))
    assert radii.tolist() == [0.0, 0.2, 0.5, 0.9]
    assert shares.tolist() == [0.75, 0.75, 0.5, 0.25]


def test_without_a_certificate_the_curve_is_zero():
    radii, shares = certified_curve(np.array([0.0, 0.0]))
    assert (radii.tolist(), shares.tolist()) == ([0.0], [0.0])
