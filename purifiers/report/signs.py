"""Detect signs of a weak attack, under which accuracy is high because the attack failed.

The signs are those of Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and those checks of
Carlini et al. 2019 (arXiv 1902.06705, sections 4.4 to 4.6 and 5.2 to 5.4) that need records only.
All functions are pure: they read records and scores, no files.
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
"""Largest share of probed images that may have a zero input gradient (our choice: zero gradients on
this share hide at most ten points of accuracy)."""

RISING_SHARE = 0.5
"""Smallest share of the images changed by the attack whose loss must rise (our choice)."""

CONFIDENCE = 0.95
"""Two-sided level of the comparison of two attacks on the same images (our choice). A cell is
compared with m others at ``1 - (1 - CONFIDENCE) / m`` (Bonferroni)."""

UNBOUNDED_EPS = 0.5
"""Smallest L-infinity eps at which every image can become the same grey image (Carlini et al.,
section 5.2)."""

NOT_PROBED = "not probed"
"""Warning of a cell whose attack recorded no gradients and losses."""


@dataclass(frozen=True)
class Signs:
    """The signs that an attack is weak.

    Attributes:
        texts: one text per sign.
        probed: whether gradients and losses were recorded under every seed.
    """

    texts: tuple[str, ...] = ()
    probed: bool = True


@dataclass(frozen=True)
class Scored:
    """A scored model and its images; equal values mean the same model on the same images.

    Attributes:
        classifier: id of the classifier's run.
        methods: the purifiers, first to last; None where a record is missing.
        data: id of the data set's run.
        subset: the scored images.
        detector: the detector whose detections count as correct on attacked images, if any.
        draws: number of the random draws that give a prediction, how they are combined, and whether
            with all steps.
    """

    classifier: str
    methods: tuple[MethodSpec, ...] | None
    data: str
    subset: Subset
    detector: MethodSpec | None = None
    draws: tuple[int, str, bool] = (1, "", False)


@dataclass(frozen=True)
class AttackedRun:
    """One seed of an attacked cell.

    Attributes:
        model: the scored model and images.
        attack: spec of the attack's run; None if its record is missing.
        direct: whether the attack takes gradients of the scored model itself.
        probe: statistics of the first ``images`` images of the attack's run; None in older runs.
            ``zero_gradient`` and ``nonfinite_gradient``: images with such an input gradient before
            the attack (None: the attack takes no gradients). ``loss_clean`` and
            ``loss_adversarial``: mean loss of the attacked model. ``loss_rose``: images whose loss
            rose. Where recorded: ``probabilities``: images at which the model returned
            probabilities; ``correct``: images that the attacked model classified correctly;
            ``moved``: those of them that the attack changed.
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
        name: name of the cell.
        threat_model: threat model of the cell.
        recipe: component spec of the attack.
        one_step: whether the attack takes a single gradient per image.
        stochastic: whether a purifier in front of the scored classifier is random.
        seeds: the runs, by seed.
    """

    name: str
    threat_model: str
    recipe: ComponentSpec
    one_step: bool
    stochastic: bool
    seeds: Mapping[int, AttackedRun]

    @cached_property
    def eps(self) -> float | None:
        """L-infinity radius on the [0, 1] scale; None for attacks without a radius."""
        eps = self.recipe.parameters.get("eps")
        return None if eps is None else fraction(eps)

    @cached_property
    def direct(self) -> bool:
        """Whether the attacks of all runs take gradients of the scored model itself."""
        return all(run.direct for run in self.seeds.values())

    @cached_property
    def accuracy(self) -> float:
        """Share of correctly classified images over all seeds, in [0, 1]."""
        return float(np.concatenate([run.scores["correct"] for run in self.seeds.values()]).mean())


def signs(cell: Attacked, document: Sequence[Attacked]) -> Signs:
    """Find the signs that the attack of a cell is weak.

    Args:
        cell: the attacked cell.
        document: the cells to compare with; the cell itself is skipped.
    """
    probes = [run.probe for run in cell.seeds.values() if run.probe is not None]
    others = [other for other in document if other is not cell]
    texts = [
        *_probabilities(probes),
        *_gradients(probes),
        *_losses(probes),
        *_beaten(cell, others),
        *_rising(cell, others),
    ]
    texts += [*_unbounded(cell), *_without_eot(cell)]
    return Signs(tuple(texts), probed=len(probes) == len(cell.seeds))


def _probabilities(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sign for a model that returns probabilities: attacks take their losses for logits'.

    AutoAttack warns of the same (Croce & Hein 2020, `fra31/auto-attack`, ``checks.py``).
    """
    found = sum(probe.get("probabilities", 0) for probe in probes)
    if found:
        images = sum(probe["images"] for probe in probes)
        yield f"probabilities in place of logits at {found} of {images} probed images"


def _gradients(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sign for vanishing or non-finite gradients.

    See Athalye et al., section 3, "shattered" and "vanishing" gradients.
    """
    probes = [probe for probe in probes if probe["zero_gradient"] is not None]
    for words, count, allowed in (
        ("zero gradient", "zero_gradient", ZERO_SHARE),
        ("NaN gradient", "nonfinite_gradient", 0.0),
    ):
        above = [probe for probe in probes if probe[count] > allowed * probe["images"]]
        if above:
            images = sum(probe["images"] for probe in above)
            yield f"{words} at {sum(probe[count] for probe in above)} of {images} probed images"


def _losses(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sign for a gradient attack that does not raise the loss of the attacked model."""
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
    """Whether the mean loss, or the loss of too many images, did not rise."""
    # Some attacks skip misclassified images, some return images that they cannot break unchanged:
    # the loss of such images need not rise. An attack that changes no image has failed.
    correct = probe.get("correct", probe["images"])
    moved = probe.get("moved", correct)
    rises = probe["loss_adversarial"] > probe["loss_clean"]  # False for NaN
    enough = moved > 0 and probe["loss_rose"] >= RISING_SHARE * moved
    return correct > 0 and not (rises and enough)


def _beaten(cell: Attacked, others: Sequence[Attacked]) -> Iterator[str]:
    """Yield a sign if an attack that should be weaker leaves fewer images correct.

    The cell's attack takes gradients of the scored model. Attacks that should be weaker, at an
    equal or smaller eps, are: one with less knowledge (Athalye et al., section 3.1; Carlini et al.,
    sections 4.4, 4.5 and 5.4), one of a single step (ibid., section 5.2), and the same attack with
    another gradient.
    """
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
    if strongest := _strongest(cell, rivals):
        rival, points = strongest
        threat = rival.threat_model or "oblivious"
        kind = f"{_gradient(rival)} gradient" if rival.direct else threat
        kind = f"{kind}, one step" if rival.one_step else kind
        yield f"beaten by '{rival.name}' ({kind}): {points:.1f} points lower accuracy"


def _rising(cell: Attacked, others: Sequence[Attacked]) -> Iterator[str]:
    """Yield a sign if a larger eps leaves more images correct.

    See Athalye et al., section 3.1, "increasing the distortion bound", and Carlini et al., section
    5.2. The attacks may differ in their step size.
    """
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
    if strongest := _strongest(cell, smaller):
        rival, points = strongest
        yield f"accuracy rises with eps: {points:.1f} points above '{rival.name}'"


def _unbounded(cell: Attacked) -> Iterator[str]:
    """Yield a sign for accuracy above chance at an eps that allows any image.

    An attacker could turn all images into the same grey image. A model then classifies at most the
    share of the most frequent label correctly. The sign is a 95 % interval (Wilson, for the number
    of distinct images) above this share. See Athalye et al., section 3.1, and Carlini et al.,
    sections 5.2 and 5.3.
    """
    if cell.eps is None or cell.eps < UNBOUNDED_EPS:
        return
    labels = pd.concat([run.scores["label"] for run in cell.seeds.values()])
    labels = labels[~labels.index.duplicated()]
    chance = float(labels.value_counts(normalize=True).max())
    if wilson(cell.accuracy * len(labels), len(labels), CONFIDENCE)[0] > chance:
        yield (
            f"accuracy {100 * cell.accuracy:.1f} % at eps {cell.eps:g}, where every image can "
            f"become the same grey image and at most {100 * chance:.1f} % can be correct"
        )


def _without_eot(cell: Attacked) -> Iterator[str]:
    """Yield a sign for a random defence attacked through single draws.

    See Athalye et al., section 4.2, and Carlini et al., section 4.6.
    """
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
    """Whether two attacks are equal except for some parameters, or for the gradient."""
    for seed in _common_seeds(cell, other):
        setups = [
            _setup(side.seeds[seed].attack, any_gradient, but_parameters) for side in (cell, other)
        ]
        return setups[0] is not None and setups[0] == setups[1]
    return False


def _setup(
    spec: AttackSpec | None, any_gradient: bool, but_parameters: Sequence[str]
) -> AttackSpec | None:
    """Remove the parameters, and the gradient, that may differ from a spec."""
    if spec is None:
        return None
    parameters = spec.attack.parameters
    kept = {key: value for key, value in parameters.items() if key not in but_parameters}
    attack = dataclasses.replace(spec.attack, parameters=kept)
    gradient = "any" if any_gradient else spec.gradient
    return dataclasses.replace(spec, attack=attack, gradient=gradient)


def _strongest(cell: Attacked, rivals: Sequence[Attacked]) -> tuple[Attacked, float] | None:
    """Select the strongest rival that leaves significantly fewer images correct than the cell.

    Returns:
        The rival and its lead in percentage points, or None.
    """
    gaps = [(rival, gap) for rival in rivals if (gap := paired_gap(cell, rival))]
    level = (1 - CONFIDENCE) / 2 / max(len(gaps), 1)
    beating = [(rival, points) for rival, (points, p) in gaps if p <= level and points > 0]
    return max(beating, key=lambda entry: entry[1], default=None)


def paired_gap(cell: Attacked, other: Attacked) -> tuple[float, float] | None:
    """Difference in accuracy between a cell and another one on the same model and images.

    The p-value is that of the one-sided sign test over images (with one seed the exact McNemar
    test). The seeds of an image are not independent, so an image counts for the side that
    classifies it correctly under more seeds.

    Returns:
        Percentage points by which the cell's accuracy is higher (mean over seeds and images), and
        the p-value; None without a common run.
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
    """Seeds under which both cells score the same images on the same model."""
    other_models = {seed: run.model for seed, run in other.seeds.items()}
    return [seed for seed, run in cell.seeds.items() if other_models.get(seed) == run.model]
