"""Specs: what they write is what they read, and whatever is wrong is one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from purifiers.core.errors import UserError
from purifiers.core.spec import (
    SPECS,
    AttackSpec,
    ComponentSpec,
    Eot,
    ImagesSpec,
    MethodSpec,
    PurifierSpec,
    ScoreSpec,
    Subset,
    Timing,
    read_spec,
)
from purifiers.plan.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ComponentSpec(component="pgd", version=1, parameters={"eps": 0.1})
AID = MethodSpec(component="aid", version=1, parameters={}, run="aid-1")
IDENTITY = MethodSpec(component="identity", version=1, parameters={}, run=None)
CLEAN = ImagesSpec(data="digits-1", subset=Subset(split="test", n=4, seed=0), run=None)
ATTACK = AttackSpec(
    images=CLEAN, classifier="net-1", methods=(), gradient="exact", attack=RECIPE, seed=0
)


@pytest.fixture(scope="module")
def smoke() -> Plan:
    return make_plan(ROOT, "smoke")


def text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


# the real plan


@pytest.mark.parametrize("stage", SPECS)
def test_what_is_written_is_read(smoke: Plan, stage: str) -> None:
    """Byte for byte: an identity is a hash of it."""
    specs = [run.spec for run in smoke.runs.values() if run.stage == stage]
    assert specs
    for spec in specs:
        written = text(spec.to_json())
        again = SPECS[stage].from_json(json.loads(written))
        assert again == spec and text(again.to_json()) == written
        assert read_spec(stage, json.loads(written), "here") == spec


def test_upstream_is_what_a_run_is_made_from(smoke: Plan) -> None:
    for run in smoke.runs.values():
        assert set(run.spec.upstream()) == {(made.stage, made.id) for made in run.inputs}, run.id


def test_a_later_stage_never_comes_first(smoke: Plan) -> None:
    order = list(SPECS)
    for run in smoke.runs.values():
        assert all(order.index(made.stage) <= order.index(run.stage) for made in run.inputs)


# what is left out


def test_fields_with_a_default_are_left_out_at_it() -> None:
    assert set(ATTACK.to_json()) == {
        *("images", "classifier", "methods", "gradient", "attack", "seed")
    }
    assert CLEAN.subset.to_json() == {"split": "test", "n": 4, "seed": 0}
    assert CLEAN.to_json() == {"data": "digits-1", "subset": CLEAN.subset.to_json(), "run": None}


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"classifier_stage": "substitute"}, {"classifier_stage": "substitute"}),
        (
            {"eot": Eot(samples=1, combine="mean")},
            {"eot": {"samples": 1, "combine": "mean"}},
        ),
        ({"precision": "bfloat16"}, {"precision": "bfloat16"}),
        ({"auxiliary": AID}, {"auxiliary": AID.to_json()}),
        ({"methods": (AID, IDENTITY)}, {"methods": [AID.to_json(), IDENTITY.to_json()]}),
    ],
)
def test_other_values_are_written(changes: dict[str, Any], written: dict[str, Any]) -> None:
    spec = dataclasses.replace(ATTACK, **changes)
    assert spec.to_json() == ATTACK.to_json() | written
    assert AttackSpec.from_json(spec.to_json()) == spec


def test_required_fields_are_written_when_they_are_none() -> None:
    unfitted = PurifierSpec(data="digits-1", train=8, classifier=None, method=RECIPE, seed=0)
    assert unfitted.to_json()["classifier"] is None and "ensemble" not in unfitted.to_json()
    score = ScoreSpec(images=CLEAN, classifier="net-1", attack=None).to_json()
    assert score["attack"] is None and "detector" not in score
    assert IDENTITY.to_json()["run"] is None


# what is upstream


def test_upstream_names_the_stage_of_each_run() -> None:
    made = dataclasses.replace(CLEAN, run="pgd-1", stage="attack")
    assert list(ATTACK.upstream()) == [("dataset", "digits-1"), ("classifier", "net-1")]
    spec = dataclasses.replace(
        ATTACK,
        images=made,
        classifier_stage="substitute",
        methods=(AID, IDENTITY),
        auxiliary=dataclasses.replace(AID, run="aid-2"),
    )
    assert list(spec.upstream()) == [
        ("dataset", "digits-1"),
        ("attack", "pgd-1"),
        ("substitute", "net-1"),
        ("purifier", "aid-1"),
        ("purifier", "aid-2"),
    ]
    corruption = dataclasses.replace(ATTACK, classifier=None)
    assert list(corruption.upstream()) == [("dataset", "digits-1")]


def test_a_fit_is_made_from_all_its_classifiers() -> None:
    spec = PurifierSpec(
        data="digits-1", train=8, classifier="one", method=RECIPE, seed=0, ensemble=("two", "three")
    )
    assert spec.classifiers == ("one", "two", "three")
    assert list(spec.upstream()) == [
        ("dataset", "digits-1"),
        *(("classifier", name) for name in ("one", "two", "three")),
    ]
    assert dataclasses.replace(spec, classifier=None, ensemble=()).classifiers == ()


# what is refused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sead": 1}, "sead"),
        ({"seed": None}, "seed"),
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"gradient": 3}, "gradient"),
        ({"methods": {}}, "methods"),
        ({"methods": [AID.to_json(), 7]}, "methods.1"),
        ({"methods": [{**AID.to_json(), "rnu": None}]}, "methods.0.rnu"),
        ({"images": {**CLEAN.to_json(), "data": None}}, "images.data"),
        ({"eot": {"samples": 4}}, "eot.combine"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        AttackSpec.from_json(ATTACK.to_json() | changes, "run.json: spec")
    line = str(caught.value)
    assert line.startswith(f"run.json: spec: {field}: ") and "\n" not in line


@pytest.mark.parametrize("field", ["images", "classifier", "methods", "gradient", "attack", "seed"])
def test_a_missing_field_is_one_line_that_names_it(field: str) -> None:
    content = ATTACK.to_json()
    del content[field]
    with pytest.raises(UserError, match=rf"^run\.json: spec: {field}: Field required; [^\n]*$"):
        AttackSpec.from_json(content, "run.json: spec")


@pytest.mark.parametrize("content", [None, 3, "text", []])
def test_what_is_no_mapping_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match=r"^run\.json: spec: Input should be an object; [^\n]*$"):
        AttackSpec.from_json(content, "run.json: spec")


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^here: there is no stage 'atack': choose one of dataset, "
    ):
        read_spec("atack", ATTACK.to_json(), "here")


def test_a_spec_of_another_stage_is_refused() -> None:
    with pytest.raises(UserError, match=r"^here: \w+: "):
        read_spec("score", ATTACK.to_json(), "here")


def test_a_limit_may_be_any_number() -> None:
    for limit in (60, 0.5):
        timing = Timing(images=3, batches=(8, 32), limit_seconds=limit)
        again = Timing.from_json(json.loads(text(timing.to_json())))
        assert again == timing and type(again.limit_seconds) is type(limit)
