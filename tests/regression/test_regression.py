"""A part of the smoke scale, computed anew, has the stored counts; what is broken is found out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from purifiers.attacks.deepfool_linf import DeepfoolLinf
from purifiers.attacks.pgd import Pgd
from purifiers.core.artifacts import read_json
from purifiers.core.provenance import fingerprint
from purifiers.core.spec import ScoreSpec
from purifiers.methods.aid import Aid
from purifiers.plan.plan import Plan

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
    """About a minute: two trainings, a purifier, seven attacks."""
    return compute(chosen_runs(plan), plan, runs_root)


def test_counts_are_the_stored_ones(plan: Plan, stored: dict[str, Any], recomputed: Counts) -> None:
    same = stored["fingerprint"] == fingerprint()
    expected = stored_counts(chosen_runs(plan), plan, stored)
    assert len(expected) == 16
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
        ("aid/table_3/svhn/natural/clean/0", "aid/audit/svhn/natural_identity/clean/0"),
        ("aid/table_3/svhn/natural/pgd/0", "aid/audit/svhn/natural_identity/pgd_oblivious/0"),
        ("aid/table_3/svhn/natural/pgd/0", "aid/audit/svhn/natural_identity/pgd_white_box/0"),
    ):
        assert by_cell[bare] == by_cell[control]


def _one_step(perturb: Callable[..., Any]) -> Callable[..., Any]:
    def weakened(self: Any, *arguments: Any) -> Any:
        self.steps = 1
        return perturb(self, *arguments)

    return weakened


def _returns_its_input(self: Any, images: Any, seed: int = 0, indices: Any = None) -> Any:
    return images


def _mirrors(self: Any, images: Any, seed: int = 0, indices: Any = None) -> Any:
    return images.flip(-1)  # an augmentation left on


@pytest.mark.parametrize("same_fingerprint", [True, False])
@pytest.mark.parametrize(
    ("owner", "name", "broken", "cell"),
    [
        (Pgd, "perturb", _one_step(Pgd.perturb), "natural/pgd"),
        (DeepfoolLinf, "perturb", _one_step(DeepfoolLinf.perturb), "natural/df"),
        (Aid, "purify", _returns_its_input, "natural_aid/df"),
        (Aid, "purify", _mirrors, "natural_aid/df"),
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
    owner: type,
    name: str,
    broken: Any,
    cell: str,
) -> None:
    """The score behind a cell is taken anew, with the images it is taken of; the rest stays."""
    key = f"aid/table_3/svhn/{cell}/0"
    (score,) = (run for run in chosen_runs(plan) if key in keys(plan)[run.id])
    expected = stored_counts([score], plan, stored)
    assert differences(expected, {k: recomputed[k] for k in expected}, same_fingerprint=False) == []

    spoiled = tmp_path / "runs"
    shutil.copytree(runs_root, spoiled)
    assert isinstance(score.spec, ScoreSpec) and score.spec.images.run is not None
    made = score.spec.images
    for folder in (spoiled / "score" / score.id, spoiled / made.stage / made.run):
        shutil.rmtree(folder)
    monkeypatch.setattr(owner, name, broken)
    found = compute([score], plan, spoiled)
    assert len(differences(expected, found, same_fingerprint)) == 1, (expected, found)


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
