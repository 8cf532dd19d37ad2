"""The result of an audit: counts with intervals, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from purifiers.auditing.protocol import Planned
from purifiers.report.intervals import wilson

COLOURS = {
    "undefended": "#BBBBBB",
    "clean": "#000000",
    "oblivious": "#56B4E9",
    "white_box": "#D55E00",
    "black_box": "#E69F00",
    "worst case": "#0072B2",
}
"""One colour per threat model; Okabe & Ito's, distinct for colour-blind readers."""


@dataclass(frozen=True)
class Rows:
    """Per-image results under one attack.

    Attributes:
        labels: int64 (n,).
        predictions: int64 (draws, n); one draw unless the defence is random.
        linf, l2: distances between the clean and the adversarial image, float32 (n,).
    """

    labels: npt.NDArray
    predictions: npt.NDArray
    linf: npt.NDArray
    l2: npt.NDArray

    @cached_property
    def correct(self) -> npt.NDArray:
        """Whether each draw classifies each image correctly, bool (draws, n)."""
        return np.asarray(self.predictions == self.labels)

    @cached_property
    def majority(self) -> npt.NDArray:
        """Whether the most frequent prediction of the draws is correct, bool (n,).

        The lowest class wins a tie.
        """
        votes = [np.bincount(column).argmax() for column in self.predictions.T]
        return np.array(votes) == self.labels

    @cached_property
    def every(self) -> npt.NDArray:
        """Whether all draws are correct, bool (n,): no draw of N lets the attacker through."""
        return np.asarray(self.correct.all(axis=0))


@dataclass(frozen=True)
class AttackResult:
    """Accuracy under one attack, or on clean images.

    Attributes:
        label: name in the table.
        threat_model: ``clean``, ``undefended`` (scored without the purifiers), ``oblivious``,
            ``white_box`` or ``black_box``.
        rows: per-image results.
        plan: the attack; None for clean images.
        probe: gradients and losses at the first images, see :func:`purifiers.core.probe.probe`.
        signs: signs that the attack is weak; the accuracy is then at best an upper bound.
        unprepared: why the original classifier was attacked instead of a prepared one, or empty.
        seconds: wall time of the attack and its scoring; 0 for clean images.
    """

    label: str
    threat_model: str
    rows: Rows
    plan: Planned | None = None
    probe: Mapping[str, Any] | None = None
    signs: tuple[str, ...] = ()
    unprepared: str = ""
    seconds: float = 0.0

    @property
    def n_correct(self) -> int:
        """Images that the first draw classifies correctly."""
        return int(self.rows.correct[0].sum())


@dataclass(frozen=True)
class AuditReport:
    """Result of :func:`purifiers.audit`; printing it shows its table.

    Attributes:
        results: clean images first, then the attacks.
        labels, indices: of the images, int64 (n,).
        eps, norm, budget: as given to the audit; ``eps`` on the [0, 1] scale.
        defence: names of the purifiers and the classifier.
        random: whether the defence is random.
        reported_elsewhere: published accuracies of the classifier, for RobustBench's networks.
        provenance: code, libraries, device and time.
    """

    results: tuple[AttackResult, ...]
    labels: npt.NDArray = field(repr=False)
    indices: npt.NDArray = field(repr=False)
    eps: float
    norm: str
    budget: str
    defence: str
    random: bool
    reported_elsewhere: str
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def clean(self) -> AttackResult:
        """The defence on clean images."""
        return next(result for result in self.results if result.threat_model == "clean")

    @cached_property
    def attacks(self) -> tuple[AttackResult, ...]:
        """The attacks on the defence."""
        scored = ("oblivious", "white_box", "black_box")
        return tuple(result for result in self.results if result.threat_model in scored)

    @cached_property
    def worst(self) -> Rows:
        """The worst case of each image: every draw is that of an attack that breaks the image.

        An image counts as broken by the attack that leaves the fewest of its draws correct.
        """
        sides = [result.rows for result in (self.clean, *self.attacks)]
        draws_correct = np.stack([rows.correct.sum(axis=0) for rows in sides])
        # the first draw decides, as in the table's accuracy; then the number of correct draws
        first = np.stack([rows.correct[0] for rows in sides])
        order = first * (draws_correct.max() + 1) + draws_correct
        chosen, columns = order.argmin(axis=0), np.arange(self.n)
        predictions = np.stack([rows.predictions for rows in sides])[chosen, :, columns].T
        return Rows(
            labels=self.labels,
            predictions=predictions,
            linf=np.stack([rows.linf for rows in sides])[chosen, columns],
            l2=np.stack([rows.l2 for rows in sides])[chosen, columns],
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per result and a last one for the worst case; accuracies in percent.

        Columns: ``attack``, ``threat_model``, ``gradient``, ``eot_samples``, ``n_correct``, ``n``,
        ``accuracy``, ``ci_low`` and ``ci_high`` (Wilson, 95 %), ``draws``, ``mean_draw``,
        ``majority`` and ``every_draw`` (accuracies over the defender's draws), ``mean_linf``,
        ``mean_l2``, ``seconds`` and ``warnings``.
        """
        listed = [self._record(r.label, r.threat_model, r.rows, r) for r in self.results]
        listed.append(self._record("worst case per image", "worst case", self.worst))
        return pd.DataFrame(listed)

    def _record(
        self, label: str, threat_model: str, rows: Rows, result: AttackResult | None = None
    ) -> dict[str, Any]:
        correct = int(rows.correct[0].sum())
        low, high = wilson(correct, self.n)
        plan = None if result is None else result.plan
        warnings = [] if result is None else [*result.signs]
        if result is not None and result.unprepared:
            warnings.append(f"attacked the original network ({result.unprepared})")
        return {
            "attack": label,
            "threat_model": threat_model,
            "gradient": "" if plan is None else plan.gradient,
            "eot_samples": 0 if plan is None else plan.eot_samples,
            "n_correct": correct,
            "n": self.n,
            "accuracy": 100.0 * correct / self.n,
            "ci_low": 100.0 * low,
            "ci_high": 100.0 * high,
            "draws": len(rows.predictions),
            "mean_draw": 100.0 * float(rows.correct.mean()),
            "majority": 100.0 * float(rows.majority.mean()),
            "every_draw": 100.0 * float(rows.every.mean()),
            "mean_linf": float(rows.linf.mean()),
            "mean_l2": float(rows.l2.mean()),
            "seconds": 0.0 if result is None else result.seconds,
            "warnings": "; ".join(warnings),
        }

    def __str__(self) -> str:
        frame = self.to_frame()
        columns = {
            "attack": [f"{label}{' !' if w else ''}" for label, w in _pairs(frame)],
            "accuracy": [f"{value:.1f}" for value in frame["accuracy"]],
            "95 % interval": [
                f"{low:.1f} to {high:.1f}"
                for low, high in zip(frame["ci_low"], frame["ci_high"], strict=True)
            ],
        }
        if self.random:
            draws = int(frame["draws"].max())
            names = {"mean_draw": f"mean of {draws}", "majority": f"majority of {draws}"}
            names["every_draw"] = f"all {draws} draws"
            columns |= {t: [f"{v:.1f}" for v in frame[key]] for key, t in names.items()}
        table = pd.DataFrame(columns).to_string(index=False, justify="right")
        lines = [f"{self.defence}: {self.n} images, {self.norm} eps {self.eps:.4g}, {self.budget}"]
        lines += [table, *(f"! {label}: {w}" for label, w in _pairs(frame) if w)]
        if self.reported_elsewhere:
            lines.append(f"classifier alone: {self.reported_elsewhere}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Accuracy with 95 % intervals, one bar per result; ``!`` marks signs of a weak attack."""
        frame = self.to_frame()[::-1]
        figure = Figure(figsize=(8.0, 1.2 + 0.28 * len(frame)), layout="constrained")
        axes = figure.subplots()
        labels = [f"{label}{' !' if w else ''}" for label, w in _pairs(frame)]
        ends = [frame["accuracy"] - frame["ci_low"], frame["ci_high"] - frame["accuracy"]]
        colours = [COLOURS[threat_model] for threat_model in frame["threat_model"]]
        positions = range(len(frame))
        error_style = {"ecolor": "#555555"}
        axes.barh(positions, frame["accuracy"], 0.7, color=colours, xerr=ends, error_kw=error_style)
        axes.set_yticks(positions, labels, fontsize=8)
        axes.set_xlim(0, 100)
        shown = [name for name in COLOURS if name in set(frame["threat_model"])]
        patches = [Patch(color=COLOURS[name], label=name.replace("_", " ")) for name in shown]
        figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
        axes.set_xlabel("accuracy (%)")
        axes.set_title(f"{self.defence}, {self.norm} eps {self.eps:.4g}, n = {self.n}", fontsize=9)
        return figure


def _pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(frame["attack"], frame["warnings"], strict=True))
