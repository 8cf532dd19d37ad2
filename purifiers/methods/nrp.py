"""NRP (Naseer et al. 2020): a generator that gives perturbed images the features of clean ones."""

from __future__ import annotations

from purifiers.methods._nrp import RepresentationPurifier

VERSION = 1
BUDGET = (
    "blocks",
    "channels",
    "attack_step",
    "attack_steps",
    "learning_rate",
    "epochs",
    "batch_size",
    "schedule",
)
PASSES = "1"  # of the generator: resG costs a quarter of WRN-34-10, RRDB two and a half of it
FIT_PASSES = "epochs * (3 * attack_steps + 7)"  # the generator's passes counted likewise


class Nrp(RepresentationPurifier):
    """x -> G(x), clipped to [0, 1]: one pass, with an exact gradient (static inference).

    Parameters: see :class:`purifiers.methods._nrp.RepresentationPurifier`.
    """
