"""A part of each paper's smoke scale, computed anew, has the stored counts; faults turn it red."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from purifiers.attacks.deepfool_linf import DeepfoolLinf
from purifiers.attacks.pgd import Pgd
from purifiers.core.artifacts import read_json
from purifiers.core.provenance import fingerprint
from purifiers.core.spec import ScoreSpec
from purifiers.core.training_images import to_float
from purifiers.methods.aid import Aid
from purifiers.methods.hgd import Hgd
from purifiers.plan.plan import Plan
from purifiers.stages import score

from .reference import (
    SCALE,
    STORED,
    Counts,
    chosen_runs,
    compute,
    differences,
    keys,
    stored_counts,
)


@pytest.fixture(scope="module")
def plan(plans: dict[str, Plan]) -> Plan:
    return plans[SCALE]


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return read_json(STORED)


@pytest.fixture(scope="module")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    yield tmp_path_factory.mktemp("regression") / "runs"
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recomputed(plan: Plan, runs_root: Path) -> Counts:
    """About a minute: eight trainings, six purifiers, eighteen adversarial sets."""
    return compute(chosen_runs(plan), plan, runs_root)


def test_counts_are_the_stored_ones(plan: Plan, stored: dict[str, Any], recomputed: Counts) -> None:
    same = stored["fingerprint"] == fingerprint()
    expected = stored_counts(chosen_runs(plan), plan, stored)
    assert len(expected) == 42
    names = [name for run in chosen_runs(plan) for name in keys(plan)[run.id]]
    assert {name.partition("/")[0] for name in names} >= {"aid", "advae", "adp", "atop", "idfr"}
    assert differences(expected, recomputed, same) == []


def test_identity_changes_nothing(plan: Plan, recomputed: Counts) -> None:
    """An internal check that needs no stored number: the control has the bare network's counts."""
    by_cell = {
        key: recomputed[names[0]]
        for names in keys(plan).values()
        for key in names
        if names[0] in recomputed
    }
    for bare, control in (
        ("clean", "clean"),
        ("pgd_oblivious", "pgd_oblivious"),
        ("pgd_oblivious", "pgd_white_box"),
    ):
        row = "aid/audit/svhn/natural"
        assert by_cell[f"{row}/{bare}/0"] == by_cell[f"{row}_identity/{control}/0"]


Fault = Callable[[pytest.MonkeyPatch, Path], None]
"""Patches a component or stage; the runs' folder holds the data sets."""


def _one_step(attack: Any) -> Fault:
    def fault(monkeypatch: pytest.MonkeyPatch, runs_root: Path) -> None:
        perturb = attack.perturb

        def weakened(self: Any, *arguments: Any) -> Any:
            self.steps = 1
            return perturb(self, *arguments)

        monkeypatch.setattr(attack, "perturb", weakened)

    return fault


def _purifies_nothing(monkeypatch: pytest.MonkeyPatch, runs_root: Path) -> None:
    monkeypatch.setattr(Aid, "purify", lambda self, images, seed=0, indices=None: images)


def _mirrors(monkeypatch: pytest.MonkeyPatch, runs_root: Path) -> None:
    """An augmentation left on."""
    monkeypatch.setattr(Aid, "purify", lambda self, images, seed=0, indices=None: images.flip(-1))


def _swapped_labels(monkeypatch: pytest.MonkeyPatch, runs_root: Path) -> None:
    """Scoring exchanges the classes in pairs: 0 and 1, 2 and 3, ..."""
    opened = score.open_images

    def swapped(*arguments: Any) -> Any:
        images = opened(*arguments)
        return dataclasses.replace(images, labels=images.labels ^ 1)

    monkeypatch.setattr(score, "open_images", swapped)


def _leak(method: type) -> Fault:
    """The defence returns a training image of the true class, whatever image it gets."""

    def fault(monkeypatch: pytest.MonkeyPatch, runs_root: Path) -> None:
        (folder,) = (runs_root / "dataset").iterdir()
        test = np.load(folder / "test_labels.npy")
        labels = np.load(folder / "train_labels.npy")
        images = np.load(folder / "train_images.npy")

        def leaking(self: Any, batch: Any, seed: int = 0, indices: Any = None) -> Any:
            rows = [int(np.argmax(labels == test[index])) for index in indices]
            return to_float(images[rows])

        monkeypatch.setattr(method, "purify", leaking)

    return fault


@pytest.mark.parametrize("same_fingerprint", [True, False])
@pytest.mark.parametrize(
    ("fault", "cell"),
    [
        (_one_step(Pgd), "aid/table_3/svhn/natural/pgd"),
        (_one_step(DeepfoolLinf), "aid/table_3/svhn/natural/df"),
        (_purifies_nothing, "aid/table_3/svhn/natural_aid/df"),
        (_mirrors, "aid/table_3/svhn/natural_aid/clean"),
        (_swapped_labels, "aid/table_3/svhn/natural/clean"),
        (_swapped_labels, "idfr/table_1/vgg16/idfr/bim_16"),
        (_leak(Aid), "aid/table_3/svhn/natural_aid/pgd"),
        (_leak(Hgd), "advae/table_1/mnist/pgd/hgd"),
    ],
)
def test_what_is_broken_turns_it_red(
    plan: Plan,
    stored: dict[str, Any],
    recomputed: Counts,
    runs_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_fingerprint: bool,
    fault: Fault,
    cell: str,
) -> None:
    """One score and the images that it reads are computed anew with a fault; all other counts
    stay. On the processor of the stored counts, these are the counts without the fault."""
    runs = chosen_runs(plan)
    expected = recomputed if same_fingerprint else stored_counts(runs, plan, stored)
    assert differences(expected, recomputed, same_fingerprint) == []

    (run,) = (run for run in runs if f"{cell}/0" in keys(plan)[run.id])
    assert isinstance(run.spec, ScoreSpec)
    images = run.spec.images
    spoiled = tmp_path / "runs"
    shutil.copytree(runs_root, spoiled)
    shutil.rmtree(spoiled / "score" / run.id)
    if images.run is not None:
        shutil.rmtree(spoiled / images.stage / images.run)
    fault(monkeypatch, spoiled)
    counts = compute([run], plan, spoiled)
    lines = differences(expected, {**recomputed, **counts}, same_fingerprint)
    assert len(lines) == 1, (expected, counts)
    assert lines[0].startswith(*counts)


def test_the_bound() -> None:
    """By hand: z = 2.576 at 1 % for one comparison; sqrt(.5 .5 2 / 256 + 2 .02^2) = .0525."""

    def apart(k1: int, k2: int, same: bool) -> bool:
        return bool(differences({"a": (k1, 256)}, {"a": (k2, 256)}, same))

    assert not apart(128, 128 + 34, False)  # 13.28 points, allowed 13.5
    assert apart(128, 128 + 36, False)  # 14.06
    assert not apart(0, 0, False) and not apart(256, 256, False)
    assert apart(0, 30, False)
    assert apart(128, 129, True) and not apart(128, 128, True)
    assert differences({"a": (128, 256)}, {"a": (64, 128)}, False) != []
    many = {str(i): (128, 256) for i in range(20)}
    found = {**many, "0": (128 + 36, 256)}
    assert differences(many, found, False) == []  # twenty comparisons: each has to be wider
