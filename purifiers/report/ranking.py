"""Rank the defences of a document by their accuracy under the strongest attack per image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from purifiers.plan.cells import Cell, Document
from purifiers.report.bootstrap import CONFIDENCE, RESAMPLES, SEED
from purifiers.report.results import FLAGS, REPORTS, Results, worst_per_image

CLEAN, AUDIT, SINGLE, MAJORITY, ANY = "clean", "worst", "pgd", "majority", "any"
WIDE, CORRUPTION = "wide", "corruption"
"""Ids of the columns that a ranked document must have."""

IDENTITY = "identity"
"""Id of the control row, which is compared with the undefended classifier and not ranked."""

NATURAL = "natural"
"""Training that the gain of a purifier with a training of its own is measured against."""


@dataclass(frozen=True)
class Ranked:
    """A defence: a base classifier and its purifiers. Accuracies and gains are in percent.

    Attributes:
        dataset: the declared data set; ``stand_in`` names the one used in its place, if any.
        rank: 1 for the highest accuracy in the audit; equal accuracies share a rank.
        rank_low, rank_high: 95 % percentile interval over images and seeds.
        base: training of the classifier.
        row: id of the document's row; ``defence`` is its label.
        defended: whether there is a purifier.
        clean: accuracy on clean images.
        oblivious: lowest accuracy under attacks on the classifier alone.
        audit, audit_low, audit_high: share of images that no attack breaks, with Wilson's 95 %
            interval.
        gain, gain_low, gain_high: ``audit`` less that of the classifier alone, with its paired
            95 % percentile interval.
        protocol_gain: ``oblivious`` less that of the classifier alone.
        single, majority, any_of_5: accuracy under PGD on the defence: of one draw, of the majority
            of 5, and of images that all 5 classify correctly; the last two are missing where
            nothing is random.
        corruption: accuracy on images with noise.
        seconds_per_image, train_minutes: cost, measured in front of the natural classifier.
        images, seeds: number of images and seeds behind ``audit``.
        warnings: signs that an attack of the row is weak, reports of the attacks' packages about
            the attacked model, and a differing control.
    """

    dataset: str
    stand_in: str
    rank: int
    rank_low: int
    rank_high: int
    base: str
    row: str
    defence: str
    defended: bool
    clean: float
    oblivious: float
    audit: float
    audit_low: float
    audit_high: float
    gain: float
    gain_low: float
    gain_high: float
    protocol_gain: float
    single: float
    majority: float
    any_of_5: float
    corruption: float
    seconds_per_image: float
    train_minutes: float
    images: int
    seeds: int
    warnings: str


@dataclass(frozen=True)
class _Entry:
    """The cells of one defence, by column, with the rows of the aggregate."""

    cells: Mapping[str, Cell]
    values: Mapping[str, Mapping[Any, Any]]

    @property
    def cell(self) -> Cell:
        return self.cells[AUDIT]

    def value(self, column: str) -> float:
        return float(self.values[column]["reproduced"])

    @property
    def oblivious(self) -> float:
        alone = (name for name, cell in self.cells.items() if cell.queried == "classifier")
        return min(map(self.value, alone))


def ranking(document: Document, frame: pd.DataFrame, results: Results) -> list[Ranked]:
    """Rank all defences of each data set whose cells have run, best first.

    Data sets for which the same runs stand in are ranked once.

    Args:
        document: a document with the columns named above.
        frame: its aggregate, one row per cell.
        results: its runs.
    """
    ranked: list[Ranked] = []
    seen: set[tuple[tuple[tuple[str, ...], ...], ...]] = set()
    costs = _costs(document, frame)
    trainings = {cell.training for cell in document.cells if not cell.methods}
    for entries in _by_dataset(document, frame):
        alone = {entry.cell.training: entry for entry in entries if not entry.cell.methods}
        bases = {
            id(entry): alone[name]
            for entry in entries
            if (name := _base_name(entry.cell, trainings)) in alone
        }
        compared = [entry for entry in entries if id(entry) in bases]
        runs = tuple(entry.cell.scores for entry in compared)
        if compared and runs not in seen:
            seen.add(runs)
            ranked += _ranked(compared, bases, results, costs)
    return ranked


def as_frame(ranked: Sequence[Ranked]) -> pd.DataFrame:
    """One row per defence, with the attributes of :class:`Ranked` as columns."""
    return pd.DataFrame([asdict(entry) for entry in ranked], columns=list(Ranked.__annotations__))


def _by_dataset(document: Document, frame: pd.DataFrame) -> Iterator[list[_Entry]]:
    """Yield the defences with finished runs of each data set."""
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    values: dict[tuple[str, str], dict[str, Mapping[Any, Any]]] = {}
    for cell, row in zip(document.cells, frame.to_dict("records"), strict=True):
        key = (cell.block, cell.row)
        cells.setdefault(key, {})[cell.column] = cell
        if pd.notna(row["reproduced"]):
            values.setdefault(key, {})[cell.column] = row
    needed = {CLEAN, AUDIT, SINGLE, MAJORITY, ANY, WIDE, CORRUPTION}
    complete = [_Entry(cells[k], values[k]) for k in cells if values.get(k, {}).keys() >= needed]
    for dataset in dict.fromkeys(entry.cell.dataset for entry in complete):
        yield [entry for entry in complete if entry.cell.dataset == dataset]


def _costs(document: Document, frame: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Cost in front of a classifier, by data set, row and stem of the metric."""
    timed = {"seconds_per_image_batched": "seconds_per_image", "train_minutes": "train_minutes"}
    return {
        (cell.dataset, cell.row, timed[cell.metric]): float(value)
        for cell, value in zip(document.cells, frame["reproduced"], strict=True)
        if cell.metric in timed
    }


def _ranked(
    entries: Sequence[_Entry],
    bases: Mapping[int, _Entry],
    results: Results,
    costs: Mapping[tuple[str, str, str], float],
) -> list[Ranked]:
    kept = [entry for entry in entries if entry.cell.row != IDENTITY]
    position = {id(entry): k for k, entry in enumerate(kept)}
    accuracy = resampled_accuracy(_outcomes(kept, results))
    ranks = ranks_of(accuracy)
    gains = accuracy - accuracy[[position[id(bases[id(entry)])] for entry in kept]]
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = np.quantile(ranks[:, 1:], tails, axis=1, method="closest_observation")
    gain_low, gain_high = np.quantile(gains[:, 1:], tails, axis=1)
    controls = _differing_controls(entries, bases)
    ranked = []
    for k, entry in enumerate(kept):
        cell, audit, base = entry.cell, entry.values[AUDIT], bases[id(entry)]
        random = cell.stochastic
        ranked.append(
            Ranked(
                dataset=cell.dataset,
                stand_in=audit["stand_in"],
                rank=int(ranks[k, 0]),
                rank_low=int(low[k]),
                rank_high=int(high[k]),
                base=cell.training,
                row=cell.row,
                defence=cell.row_label,
                defended=bool(cell.methods),
                clean=entry.value(CLEAN),
                oblivious=entry.oblivious,
                audit=entry.value(AUDIT),
                audit_low=audit["ci_low"],
                audit_high=audit["ci_high"],
                gain=100 * float(gains[k, 0]),
                gain_low=100 * float(gain_low[k]),
                gain_high=100 * float(gain_high[k]),
                protocol_gain=entry.oblivious - base.oblivious,
                single=entry.value(SINGLE),
                majority=entry.value(MAJORITY) if random else np.nan,
                any_of_5=entry.value(ANY) if random else np.nan,
                corruption=entry.value(CORRUPTION),
                seconds_per_image=costs.get((cell.dataset, cell.row, "seconds_per_image"), np.nan),
                train_minutes=costs.get((cell.dataset, cell.row, "train_minutes"), np.nan),
                images=int(audit["images"]),
                seeds=int(audit["seeds"]),
                warnings="; ".join(filter(None, [_signs(entry), controls.get(cell.training, "")])),
            )
        )
    return sorted(ranked, key=lambda entry: (entry.rank, -entry.clean))


def _base_name(cell: Cell, undefended: Collection[str]) -> str:
    """Training of the classifier alone that a defence is compared with."""
    return cell.training if cell.training in undefended else NATURAL


def _outcomes(entries: Sequence[_Entry], results: Results) -> np.ndarray:
    """Whether no attack breaks an image, bool (defences, seeds, images).

    Only the seeds that all defences have finished count.
    """
    runs = [results.find(entry.cell).seeds for entry in entries]
    common = sorted(set.intersection(*(set(seeds) for seeds in runs)))
    scored = [[worst_per_image(seeds[seed]).scores["correct"] for seed in common] for seeds in runs]
    return np.stack([[series.to_numpy(dtype=bool) for series in row] for row in scored])


def resampled_accuracy(outcomes: np.ndarray) -> np.ndarray:
    """Accuracy in the data, then in each bootstrap resample, of shape (defences, 1 + resamples).

    A resample draws seeds, then images, with replacement; the same ones for all defences.

    Args:
        outcomes: bool (defences, seeds, images).
    """
    defences, seeds, images = outcomes.shape
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    weights = np.vstack([np.ones(images), drawn]) / images
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    seed_weights = np.vstack([np.ones(seeds), drawn]) / seeds
    means = outcomes.reshape(-1, images).astype(float) @ weights.T
    return (means.reshape(defences, seeds, -1) * seed_weights.T).sum(axis=1)


def ranks_of(accuracy: np.ndarray) -> np.ndarray:
    """Rank along the first axis: 1 + the number of higher accuracies."""
    rounded = accuracy.round(9)  # equal counts must stay equal
    return 1 + (rounded[None] > rounded[:, None]).sum(axis=1)


def _signs(entry: _Entry) -> str:
    """Signs of weakness in the strongest attack, and in the one at twice eps, and what the packages
    of the attacks reported.
    """
    rows = [entry.values[name] for name in (AUDIT, WIDE)]
    texts = [row["warnings"] for row in rows if row["suspicious"]]
    texts += [flag.text for row in rows for flag in row[FLAGS] if REPORTS in flag.text]
    return "; ".join(dict.fromkeys(texts))


def _differing_controls(entries: Sequence[_Entry], bases: Mapping[int, _Entry]) -> dict[str, str]:
    """Trainings whose identity control differs from the undefended classifier in any column."""
    differing = {}
    for entry in (entry for entry in entries if entry.cell.row == IDENTITY):
        base = bases[id(entry)]
        columns = sorted(entry.values.keys() & base.values.keys())
        if wrong := [name for name in columns if entry.value(name) != base.value(name)]:
            differing[entry.cell.training] = f"the identity control differs in {', '.join(wrong)}"
    return differing
