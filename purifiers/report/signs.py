"""Signs of a weak attack: accuracy that is left because the attack failed, not the defence held.

The signs are those of Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and the checks of
Carlini et al. 2019 (arXiv 1902.06705, sections 4.4 to 4.6 and 5.2 to 5.4) that can be made from
records. Every function here is pure: it reads records and scores, no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import bdtrc

from purifiers.core.numbers import fraction
from purifiers.core.spec import AttackSpec, ComponentSpec, MethodSpec, Subset
from purifiers.report.intervals import wilson

ZERO_SHARE = 0.1
"""Share of probed images that may have a zero input gradient (our choice: a gradient that is zero
no more often hides at most ten points of accuracy)."""

RISING_SHARE = 0.5
"""Share of probed images whose loss has to rise (our choice)."""

CONFIDENCE = 0.95
"""Two-sided level at which one attack is weaker than another on the same images (our choice). A
cell is compared with m others at ``1 - (1 - CONFIDENCE) / m`` (Bonferroni)."""

UNBOUNDED_EPS = 0.5
"""From here on every image can be turned into the same grey one (Carlini et al., section 5.2)."""

NOT_PROBED = "not probed"
"""The warning where an attack's run recorded no gradients and losses."""


@dataclass(frozen=True)
class Signs:
    """What speaks against an attack.

    Attributes:
        texts: the signs, in words.
        probed: gradients and losses were recorded under every seed.
    """

    texts: tuple[str, ...] = ()
    probed: bool = True


@dataclass(frozen=True)
class Scored:
    """A scored model and its images: equal ones score the same images on the same model.

    Attributes:
        classifier: run.
        methods: the purifiers; None where a record is gone.
        data: the data set's run.
    """

    classifier: str
    methods: tuple[MethodSpec, ...] | None
    data: str
    subset: Subset
    detector: MethodSpec | None = None


@dataclass(frozen=True)
class AttackedRun:
    """One seed of an attacked cell.

    Attributes:
        model: what is scored.
        attack: spec of the attack's run; None if that is not there any more.
        direct: the attack takes gradients of the very model that is scored.
        probe: what the attack's run recorded of its first ``images`` images: how many have a
            ``zero_gradient`` or a ``nonfinite_gradient`` before the attack (None: the attack
            takes no gradients), the mean ``loss_clean`` and ``loss_adversarial`` of the attacked
            model, on how many images the loss rose (``loss_rose``) and, where it is recorded, how
            many the attacked model had right (``correct``) and how many of these the attack changed
            (``moved``). None in older runs.
        scores: indexed by the image's index; columns ``label`` and ``correct``.
    """

    model: Scored
    attack: AttackSpec | None
    direct: bool
    probe: Mapping[str, Any] | None
    scores: pd.DataFrame


@dataclass(frozen=True)
class Attacked:
    """A cell under one attack.

    Attributes:
        name: the cell in words.
        recipe: the attack's component.
        one_step: it takes a single gradient per image.
        stochastic: a purifier in front of the scored classifier is random.
        seeds: its runs.
    """

    name: str
    threat_model: str
    recipe: ComponentSpec
    one_step: bool
    stochastic: bool
    seeds: Mapping[int, AttackedRun]

    @cached_property
    def eps(self) -> float | None:
        """L-infinity radius on the [0, 1] scale; None for attacks that have none."""
        eps = self.recipe.parameters.get("eps")
        return None if eps is None else fraction(eps)

    @cached_property
    def direct(self) -> bool:
        """All runs take gradients of what they score."""
        return all(run.direct for run in self.seeds.values())

    @cached_property
    def accuracy(self) -> float:
        """Share of correct images, over all seeds."""
        return float(np.concatenate([run.scores["correct"] for run in self.seeds.values()]).mean())


def signs(cell: Attacked, document: Sequence[Attacked]) -> Signs:
    """What speaks against the attack of a cell.

    Args:
        document: the cells to compare with; the cell itself may be among them.
    """
    probes = [run.probe for run in cell.seeds.values() if run.probe is not None]
    others = [other for other in document if other is not cell]
    texts = [*_gradients(probes), *_losses(probes), *_beaten(cell, others), *_rising(cell, others)]
    texts += [*_unbounded(cell), *_without_eot(cell)]
    return Signs(tuple(texts), probed=len(probes) == len(cell.seeds))


def _gradients(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Vanished or broken gradients (Athalye et al., section 3, "shattered" and "vanishing")."""
    probes = [probe for probe in probes if probe["zero_gradient"] is not None]
    for words, count, allowed in (
        ("zero gradient", "zero_gradient", ZERO_SHARE),
        ("NaN gradient", "nonfinite_gradient", 0.0),
    ):
        odd = [probe for probe in probes if probe[count] > allowed * probe["images"]]
        if odd:
            images = sum(probe["images"] for probe in odd)
            yield f"{words} at {sum(probe[count] for probe in odd)} of {images} probed images"


def _losses(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """An attack by gradients that does not raise the loss of what it attacks."""
    flat = [probe for probe in probes if probe["zero_gradient"] is not None and _is_flat(probe)]
    if flat:
        weights = [probe["images"] for probe in flat]
        before, after = (
            np.average([probe[key] for probe in flat], weights=weights)
            for key in ("loss_clean", "loss_adversarial")
        )
        rose = sum(probe["loss_rose"] for probe in flat)
        yield (
            f"loss does not rise: {before:.3g} on clean and {after:.3g} on adversarial images, "
            f"higher on {rose} of {sum(weights)}"
        )


def _is_flat(probe: Mapping[str, Any]) -> bool:
    # Some attacks leave alone what is wrong already, some give back what they could not break: such
    # images need not rise. One that changes nothing at all has failed.
    right = probe.get("correct", probe["images"])
    moved = probe.get("moved", right)
    rises = probe["loss_adversarial"] > probe["loss_clean"]  # False for NaN
    enough = moved > 0 and probe["loss_rose"] >= RISING_SHARE * moved
    return right > 0 and not (rises and enough)


def _beaten(cell: Attacked, others: Sequence[Attacked]) -> Iterator[str]:
    """An attack on the model itself is beaten by one that should be weaker, at no larger eps: one
    that knows less (Athalye et al., section 3.1; Carlini et al., sections 4.4, 4.5 and 5.4), one of
    a single step (ibid., section 5.2), or the same attack by another gradient."""
    if not cell.direct or cell.eps is None:
        return
    rivals = [
        other
        for other in others
        if other.eps is not None
        and other.eps <= cell.eps
        and (
            not other.direct
            or (other.one_step and not cell.one_step)
            or _alike(cell, other, any_gradient=True)
        )
    ]
    if found := _strongest(cell, rivals):
        rival, points = found
        knows = rival.threat_model or "oblivious"
        how = f"{_gradient(rival)} gradient" if rival.direct else knows
        how = f"{how}, one step" if rival.one_step else how
        yield f"beaten by '{rival.name}' ({how}): it leaves {points:.1f} points fewer correct"


def _rising(cell: Attacked, others: Sequence[Attacked]) -> Iterator[str]:
    """A larger eps leaves more images correct (Athalye et al., section 3.1, as "increasing the
    distortion bound"; Carlini et al., section 5.2). The step size may follow eps."""
    eps = cell.eps
    if eps is None:
        return
    smaller = [
        other
        for other in others
        if other.eps is not None
        and other.eps < eps
        and _alike(cell, other, but_parameters=("eps", "step_size"))
    ]
    if found := _strongest(cell, smaller):
        rival, points = found
        yield f"accuracy rises with eps: {points:.1f} points above '{rival.name}'"


def _unbounded(cell: Attacked) -> Iterator[str]:
    """Accuracy above chance at an eps that allows every image (Athalye et al., section 3.1; Carlini
    et al., sections 5.2 and 5.3).

    An attacker could make all images the same grey one, of which a model is right for no more
    images than the most frequent label has: the sign is a 95 % interval (Wilson, at the number of
    distinct images) that lies above this share.
    """
    if cell.eps is None or cell.eps < UNBOUNDED_EPS:
        return
    labels = pd.concat([run.scores["label"] for run in cell.seeds.values()])
    labels = labels[~labels.index.duplicated()]
    chance = float(labels.value_counts(normalize=True).max())
    if wilson(cell.accuracy * len(labels), len(labels), CONFIDENCE)[0] > chance:
        yield (
            f"accuracy {100 * cell.accuracy:.1f} % at eps {cell.eps:g}, where every image can be "
            f"made the same grey one and at most {100 * chance:.1f} % be right"
        )


def _without_eot(cell: Attacked) -> Iterator[str]:
    """A random defence attacked through single draws (Athalye et al., section 4.2; Carlini et al.,
    section 4.6)."""
    specs = [run.attack for run in cell.seeds.values() if run.attack is not None]
    if cell.stochastic and any(
        spec.methods and (spec.eot is None or spec.eot.samples <= 1) for spec in specs
    ):
        yield "random defence attacked without EOT"


def _gradient(cell: Attacked) -> str:
    return next(run.attack.gradient for run in cell.seeds.values() if run.attack)


def _alike(
    cell: Attacked,
    other: Attacked,
    any_gradient: bool = False,
    but_parameters: Sequence[str] = (),
) -> bool:
    """Whether two attacks are the same but for some parameters, or the gradient."""
    for seed in _common_seeds(cell, other):
        setups = [
            _setup(side.seeds[seed].attack, any_gradient, but_parameters) for side in (cell, other)
        ]
        return setups[0] is not None and setups[0] == setups[1]
    return False


def _setup(
    spec: AttackSpec | None, any_gradient: bool, but_parameters: Sequence[str]
) -> AttackSpec | None:
    """A spec without the parameters and the gradient that may differ."""
    if spec is None:
        return None
    parameters = spec.attack.parameters
    kept = {key: value for key, value in parameters.items() if key not in but_parameters}
    attack = dataclasses.replace(spec.attack, parameters=kept)
    gradient = "any" if any_gradient else spec.gradient
    return dataclasses.replace(spec, attack=attack, gradient=gradient)


def _strongest(cell: Attacked, rivals: Sequence[Attacked]) -> tuple[Attacked, float] | None:
    """Of the rivals that leave significantly fewer images correct than the cell, the one that
    leaves fewest, and by how many points."""
    gaps = [(rival, gap) for rival in rivals if (gap := paired_gap(cell, rival))]
    level = (1 - CONFIDENCE) / 2 / max(len(gaps), 1)
    beating = [(rival, points) for rival, (points, p) in gaps if p <= level and points > 0]
    return max(beating, key=lambda found: found[1], default=None)


def paired_gap(cell: Attacked, other: Attacked) -> tuple[float, float] | None:
    """How many points more the cell leaves correct than another one, on the same model and images.

    The p-value is that of the sign test over images (of one seed: the exact McNemar test), one
    side: seeds of one image are not independent, so an image counts for the side that has it right
    under more seeds.

    Returns:
        Points (mean over seeds and images) and p-value, or None without a common run.
    """
    seeds = _common_seeds(cell, other)
    if not seeds:
        return None
    sides = [[side.seeds[seed].scores["correct"] for seed in seeds] for side in (cell, other)]
    correct = pd.concat([*sides[0], *sides[1]], axis=1, join="inner").to_numpy(dtype=int)
    if not len(correct):
        return None
    gain = correct[:, : len(seeds)].sum(axis=1) - correct[:, len(seeds) :].sum(axis=1)
    more, fewer = int((gain > 0).sum()), int((gain < 0).sum())
    p = float(bdtrc(more - 1, more + fewer, 0.5)) if more else 1.0
    return 100 * float(gain.mean()) / len(seeds), p


def _common_seeds(cell: Attacked, other: Attacked) -> list[int]:
    """Seeds under which both score the same images on the same model."""
    theirs = {seed: run.model for seed, run in other.seeds.items()}
    return [seed for seed, run in cell.seeds.items() if theirs.get(seed) == run.model]
