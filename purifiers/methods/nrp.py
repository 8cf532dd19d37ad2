"""NRP (Naseer et al. 2020): a generator that gives perturbed images the features of clean ones."""

from __future__ import annotations

from purifiers.methods._nrp import RepresentationPurifier


class Nrp(RepresentationPurifier):
    """x -> G(x), clipped to [0, 1], in one pass with an exact gradient (static inference).

    Parameters: see :class:`purifiers.methods._nrp.RepresentationPurifier`.
    """

    traits = RepresentationPurifier.traits.replace(version=1)
