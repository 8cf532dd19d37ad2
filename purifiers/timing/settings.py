"""Settings of the benchmark: the attacks and the parameters that all libraries share.

``peers.py``, ``suite.py`` and ``floor.py`` translate them for each library.
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
# A library that is slower than this multiple of the floor is measured in one round and flagged.
SLOW = 5.0


@dataclass(frozen=True)
class Attack:
    """One group of rows.

    Attributes:
        title: name in tables and charts.
        method: name of the function that implements it in each library.
        norm: ``"linf"`` at a fixed eps, or ``"l2"`` for attacks that minimise the perturbation.
        searches: number of values of c that C&W tries.
        share: only 1 / share of the victim's images are attacked.
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
    """Measurements of one victim on one device.

    Attributes:
        images: number of test images.
        attacks: keys of ``ATTACKS``.
        as_is: keys for which libraries that compute gradients of trainable parameters are also
            measured on a network with trainable parameters.
        without: (library, attack) pairs that would take minutes per round; another victim covers
            them.
    """

    images: int
    attacks: tuple[str, ...]
    as_is: tuple[str, ...]
    without: tuple[tuple[str, str], ...] = ()


_ALL = tuple(ATTACKS)
_REPRESENTATIVE = ("pgd", "cw_1", "deepfool")
# On a processor a pass through the ResNet-18 takes a hundred times as long as one through the
# small network; measurements that would only repeat its result are omitted there.
PLANS = {
    ("cpu", "mnist"): Plan(128, _ALL, _REPRESENTATIVE),
    ("cpu", "cifar10"): Plan(
        24,
        ("pgd", "mim", "apgd", "eot", "cw_1", "deepfool"),
        (),
        (("art", "cw_1"), ("art", "deepfool")),
    ),
    ("cuda", "mnist"): Plan(1024, _ALL, _REPRESENTATIVE),
    ("cuda", "cifar10"): Plan(256, _ALL, _REPRESENTATIVE),
}
