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
PASSES = "0"
FIT_PASSES = "epochs * (3 * attack_steps + 2.5)"
SIZES = ("generator", "blocks", "channels")
OWN_PASSES = "1"
OWN_FIT_PASSES = "4.5 * epochs"  # the critic's passes counted likewise


class Nrp(RepresentationPurifier):
    """x -> G(x), clipped to [0, 1]: one pass, with an exact gradient (static inference).

    Parameters: see :class:`purifiers.methods._nrp.RepresentationPurifier`.
    """
