"""What is measured: the attacks with the settings that every library gets alike.

How each library spells them stands in ``peers.py``, ``suite.py`` and ``floor.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

STEPS = 20  # of PGD, MIM and APGD
EOT_SAMPLES = 10  # draws per gradient
CW_STEPS = 50
CW_INITIAL_CONST = 3.0
DEEPFOOL_STEPS = 50
OVERSHOOT = 0.02

ROUNDS = 5
# A library that needs more than this many times the floor is measured in one round, and flagged.
SLOW = 5.0


@dataclass(frozen=True)
class Attack:
    """One group of rows.

    Attributes:
        title: as tables and charts name it.
        method: name of the function that each library may have for it.
        norm: ``"linf"`` at a fixed eps, or ``"l2"`` for attacks that look for the nearest
            misclassified image.
        searches: values of c that C&W tries.
        share: 1 / share of the victim's images are attacked.
    """

    title: str
    method: str
    norm: str = "linf"
    searches: int = 1
    share: int = 1


ATTACKS = {
    "pgd": Attack(f"PGD-{STEPS}", "pgd"),
    "mim": Attack(f"MIM-{STEPS}", "mim"),
    "apgd": Attack(f"APGD-CE-{STEPS}", "apgd"),
    "eot": Attack(f"PGD-{STEPS}, EOT {EOT_SAMPLES}", "pgd_eot", share=4),
    "cw_1": Attack(f"C&W-L2 {CW_STEPS} x 1", "cw_l2", "l2", share=2),
    "cw_3": Attack(f"C&W-L2 {CW_STEPS} x 3", "cw_l2", "l2", searches=3, share=2),
    "deepfool": Attack("DeepFool-L2", "deepfool_l2", "l2"),
}


class Plan(NamedTuple):
    """How a victim is measured.

    Attributes:
        images: number of test images.
        attacks: names out of ``ATTACKS``.
        as_is: those of them in which libraries that would compute gradients of the parameters are
            also given a network whose parameters are trainable.
        without: (library, attack) that would take minutes per round and is told by another victim.
    """

    images: int
    attacks: tuple[str, ...]
    as_is: tuple[str, ...]
    without: tuple[tuple[str, str], ...] = ()


_ALL = tuple(ATTACKS)
_TELLING = ("pgd", "cw_1", "deepfool")
# On a processor a pass through the ResNet-18 takes a hundred times as long as one through the
# small network: what would tell the same again is left out there.
PLANS = {
    ("cpu", "mnist"): Plan(128, _ALL, _TELLING),
    ("cpu", "cifar10"): Plan(
        24,
        ("pgd", "mim", "apgd", "eot", "cw_1", "deepfool"),
        (),
        (("art", "cw_1"), ("art", "deepfool")),
    ),
    ("cuda", "mnist"): Plan(1024, _ALL, _TELLING),
    ("cuda", "cifar10"): Plan(256, _ALL, _TELLING),
}
