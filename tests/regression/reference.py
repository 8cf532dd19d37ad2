"""Stored counts of the smoke scale, and how far new ones may lie from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

from purifiers.core.artifacts import RunFolder, read_json
from purifiers.core.errors import UserError
from purifiers.core.spec import SPECS
from purifiers.plan.batches import gather, write_specs
from purifiers.plan.graph import Run
from purifiers.plan.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SCALE = "smoke"
STORED = ROOT / "results" / "reference" / f"{SCALE}.json"

CHOSEN: dict[str, dict[str, tuple[str, ...]]] = {
    "aid/table_3": {
        "natural": ("clean", "pgd", "df"),
        "madry": ("clean", "pgd", "df"),
        "natural_aid": ("clean", "pgd", "df"),
    },
    "aid/audit": {
        "natural": ("clean", "pgd_oblivious"),
        "natural_identity": ("clean", "pgd_oblivious", "pgd_white_box"),
        "natural_random_sign": ("clean", "pgd_oblivious", "pgd_white_box"),
        "natural_aid": ("pgd_white_box",),
    },
    "advae/table_1": {
        "no_attack": ("no_defence", "white_box", "hgd"),
        "fgsm": ("black_box",),
        "pgd": ("no_defence", "white_box", "hgd", "it_adv"),
    },
    "adp/table_7": {
        "sigma_25": ("standard", "bpda_eot", "classifier_pgd"),
        "sigma_40": ("standard", "classifier_pgd"),
    },
    "atop/audit": {
        "none": ("clean", "cw_oblivious"),
        "rt1_atop": ("clean", "cw_oblivious", "bpda_white_box"),
    },
    "idfr/table_1": {
        "no_defence": ("clean", "fgsm_16"),
        "fast_at": ("clean",),
        "idfr": ("clean", "fgsm_16", "bim_16"),
    },
}
"""Document, row, columns of what the test computes anew, in the document's first block. It reaches
every paper, threat model and kind of component in about a minute on one core."""

FALSE_ALARMS = 0.01
"""How often the comparison of all counts together may be red by chance."""
NUMERICS = 0.02
"""Standard deviation of an accuracy over processors. Training amplifies rounding, and rounding
depends on the instruction set. Measured on the chosen part at smoke scale: with AVX2 and with
SSE4 instead of AVX-512 the accuracies differed by 1.7 points (root mean square), at most by 4.3;
1.7 / sqrt(2) = 1.2, rounded up."""

Counts = dict[str, tuple[int, int]]
"""Key of a score run to (n_correct, n)."""


def keys(plan: Plan) -> dict[str, list[str]]:
    """Id of a score run to its keys ``document/block/row/column/seed``, one per cell it is alone
    in."""
    found: dict[str, list[str]] = {}
    for name, document in plan.documents.items():
        for cell in document.cells:
            for seed, scores in zip(cell.seeds, cell.scores, strict=True):
                if len(scores) == 1 and cell.stage == "score":
                    key = f"{name}/{cell.block}/{cell.row}/{cell.column}/{seed}"
                    found.setdefault(scores[0], []).append(key)
    return found


def chosen_runs(plan: Plan) -> list[Run]:
    """The score runs of the part that the test computes anew.

    Raises:
        UserError: a chosen cell is not planned any more.
    """
    found: dict[str, Run] = {}
    for name, rows in CHOSEN.items():
        cells = plan.documents[name].cells
        for row, columns in rows.items():
            for column in columns:
                place = (cells[0].block, row, column)
                ids = [
                    score
                    for cell in cells
                    if (cell.block, cell.row, cell.column) == place
                    for scores in cell.scores
                    for score in scores
                ]
                if not ids:
                    raise UserError(f"{name}: {'/'.join(place)} is not planned; change CHOSEN")
                found.update({score: plan.runs[score] for score in ids})
    return list(found.values())


def compute(runs: Iterable[Run], plan: Plan, runs_root: Path) -> Counts:
    """Do runs and all they are made from, below ``runs_root``, as the workflow's jobs do; what is
    there already is not done again.

    Raises:
        RuntimeError: a run failed.
    """
    from purifiers.stages.job import run_batch

    wanted = list(runs)
    batches = {batch.id: batch for batch in gather(wanted, plan.scale).values()}
    stages = list(SPECS)
    write_specs(batches.values(), runs_root, plan.scale)
    for batch in sorted(batches.values(), key=lambda batch: stages.index(batch.stage)):
        folder = runs_root / "batches"
        spec = read_json(folder / batch.spec_name)
        if run_batch(spec, folder / batch.manifest_name, runs_root, threads=1):
            raise RuntimeError(f"{batch.id} failed, see above")
    return counts(wanted, plan, runs_root)


def counts(runs: Iterable[Run], plan: Plan, runs_root: Path) -> Counts:
    """Counts of finished score runs, each under the first of its keys."""
    names = keys(plan)
    found: Counts = {}
    for run in runs:
        summary = RunFolder(runs_root, "score", run.id).record().summary
        found[names[run.id][0]] = (summary["n_correct"], summary["n"])
    return found


def stored_counts(runs: Iterable[Run], plan: Plan, stored: Mapping[str, Any]) -> Counts:
    """What is stored for score runs, under the first of their keys of today.

    Raises:
        UserError: nothing is stored for one of them.
    """
    names = keys(plan)
    found: Counts = {}
    for run in runs:
        known = [key for key in names[run.id] if key in stored["counts"]]
        if not known:
            raise UserError(
                f"{STORED.relative_to(ROOT)} has nothing for {names[run.id][0]}; renew it: "
                "python tests/regression/renew_reference.py"
            )
        n_correct, n = stored["counts"][known[0]]
        found[names[run.id][0]] = (n_correct, n)
    return found


def differences(stored: Counts, found: Counts, same_fingerprint: bool) -> list[str]:
    """One line per count that differs by more than it may; empty when all is well.

    With the same fingerprint (processor, torch, device) counts must be equal. Otherwise two
    accuracies k1 / n1 and k2 / n2 may differ by

        z sqrt(p (1 - p) (1 / n1 + 1 / n2) + 2 NUMERICS^2),   p = (k1 + k2 + 1) / (n1 + n2 + 2),

    the bound of two independent samples, widened by what two processors' trainings may differ.
    z is two-sided, for ``FALSE_ALARMS`` over all comparisons (Bonferroni). Both sides classify the
    same images, so the truth varies less than independent samples do: the bound errs to green.
    """
    z = NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * max(len(found), 1)))
    lines = []
    for key, (k2, n2) in found.items():
        k1, n1 = stored[key]
        p = (k1 + k2 + 1) / (n1 + n2 + 2)
        allowed = z * sqrt(p * (1 - p) * (1 / n1 + 1 / n2) + 2 * NUMERICS**2)
        if same_fingerprint:
            wrong, bound = (k1, n1) != (k2, n2), "equality, for the processor is the same"
        else:
            wrong = n1 != n2 or abs(k1 / n1 - k2 / n2) > allowed
            bound = f"at most {100 * allowed:.1f} points apart"
        if wrong:
            lines.append(f"{key}: {k2} of {n2}, stored {k1} of {n1}; expected {bound}")
    return lines
