"""Where images come from and what a run was made from, as far as records are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from purifiers.core.ancestry import image_history, records_upstream
from purifiers.core.artifacts import Record, RunFolder
from purifiers.core.spec import (
    AttackSpec,
    ClassifierSpec,
    ComponentSpec,
    DatasetSpec,
    ImagesSpec,
    MethodSpec,
    PurifierSpec,
    PurifySpec,
    ScoreSpec,
    Spec,
    Subset,
)

RECIPE = ComponentSpec(component="any", version=1, parameters={})
CLEAN = ImagesSpec(data="digits", subset=Subset(split="test", n=4, seed=0), run=None)
ATTACKED = dataclasses.replace(CLEAN, run="pgd", stage="attack")
ONCE = dataclasses.replace(CLEAN, run="first", stage="purify")
TWICE = dataclasses.replace(CLEAN, run="second", stage="purify")
AID = MethodSpec(component="aid", version=1, parameters={}, run="fit")

SPECS: dict[str, Spec] = {
    "digits": DatasetSpec(dataset=RECIPE),
    "net": ClassifierSpec(data="digits", train=8, classifier=RECIPE, training=RECIPE, seed=0),
    "fit": PurifierSpec(data="digits", train=8, classifier="net", method=RECIPE, seed=0),
    "pgd": AttackSpec(
        images=CLEAN, classifier="net", methods=(AID,), gradient="exact", attack=RECIPE, seed=0
    ),
    "first": PurifySpec(images=ATTACKED, classifier="net", method=AID, seed=0),
    "second": PurifySpec(images=ONCE, classifier="net", method=AID, seed=0),
    "clean": ScoreSpec(images=CLEAN, classifier="net", attack=None),
    "purified": ScoreSpec(images=TWICE, classifier="net", attack=RECIPE),
}
"""A score of images that were attacked and purified twice, and one of clean images."""

Finish = Callable[..., Path]


@pytest.fixture
def finish(tmp_path: Path) -> Finish:
    """``finish("fit", ...)``: a runs folder in which all runs but the named ones are finished."""

    def write(*left_out: str) -> Path:
        for name, spec in SPECS.items():
            if name not in left_out:
                RunFolder(tmp_path, spec.stage, name).finish(spec, [], {}, 1.0, {})
        return tmp_path

    return write


def ids(records: dict[tuple[str, str], Record]) -> set[str]:
    assert all(key == (record.stage, record.id) for key, record in records.items())
    return {record.id for record in records.values()}


def test_images_are_followed_back_to_the_clean_ones(finish: Finish) -> None:
    root = finish()
    history = list(image_history(root, TWICE))
    assert [images for images, _ in history] == [TWICE, ONCE, ATTACKED]
    records = [record for _, record in history]
    assert [record and record.spec for record in records] == [
        SPECS[name] for name in ("second", "first", "pgd")
    ]
    assert list(image_history(root, ATTACKED)) == history[2:]
    assert list(image_history(root, CLEAN)) == []


@pytest.mark.parametrize(("gone", "length"), [("second", 1), ("first", 2), ("pgd", 3)])
def test_a_history_ends_at_a_run_that_is_not_finished(
    finish: Finish, gone: str, length: int
) -> None:
    history = list(image_history(finish(gone), TWICE))
    assert len(history) == length
    images, record = history[-1]
    assert images.run == gone and record is None
    assert all(record is not None for _, record in history[:-1])


def test_damage_to_the_images_themselves_is_not_looked_for(finish: Finish) -> None:
    root = finish("pgd")
    folder = RunFolder(root, "attack", "pgd")
    folder.path.mkdir(parents=True)
    (folder.path / "images.npy").write_bytes(b"whole")
    folder.finish(SPECS["pgd"], ["images.npy"], {}, 1.0, {})
    (folder.path / "images.npy").write_bytes(b"other")
    assert [record.id for _, record in image_history(root, TWICE) if record] == [
        *("second", "first", "pgd")
    ]


def test_each_record_behind_runs_is_there_once(finish: Finish) -> None:
    root = finish()
    assert ids(records_upstream(root, [("score", "purified")])) == SPECS.keys() - {"clean"}
    assert ids(records_upstream(root, [("score", "clean")])) == {"clean", "net", "digits"}
    both = [("score", "clean"), ("score", "purified"), ("score", "clean"), ("classifier", "net")]
    assert ids(records_upstream(root, both)) == set(SPECS)
    assert len(records_upstream(root, both)) == len(SPECS)
    assert records_upstream(root, []) == {}


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("purified", set()),
        ("second", {"purified", "net", "digits"}),
        ("fit", {"purified", "second", "first", "pgd", "net", "digits"}),
        ("digits", {"purified", "second", "first", "pgd", "fit", "net"}),
    ],
)
def test_what_is_not_finished_is_left_out(finish: Finish, gone: str, left: set[str]) -> None:
    """And with it what only it was made from."""
    assert ids(records_upstream(finish(gone), [("score", "purified")])) == left


def test_runs_of_two_stages_may_share_a_name(tmp_path: Path) -> None:
    one = dataclasses.replace(ATTACKED, run="same")
    for spec in (SPECS["pgd"], ScoreSpec(images=one, classifier="net", attack=RECIPE)):
        RunFolder(tmp_path, spec.stage, "same").finish(spec, [], {}, 1.0, {})
    found = records_upstream(tmp_path, [("score", "same")])
    assert set(found) == {("score", "same"), ("attack", "same")}
