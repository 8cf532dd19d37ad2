"""``pretrained``: the weights that a classifier brings are kept, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec
from purifiers.core.traits import ClassifierTraits
from purifiers.plan.plan import Plan

PAPER = {
    "classifiers": {
        "small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1, "first_stride": 2},
        "wide": {"component": "wide_resnet", "depth": 10, "widen_factor": 2, "first_stride": 2},
    },
    "trainings": {
        "natural": {"component": "natural", "epochs": 0.5, "batch_size": 32},
        "kept": {"component": "pretrained"},
    },
    "methods": {},
    "attacks": {"pgd": {"component": "pgd", "eps": 0.1, "steps": 2, "step_size": 0.05}},
}
CELL = {
    **{"dataset": "digits", "classifier": "small", "training": "kept", "methods": []},
    **{"attack": "pgd", "threat_model": "white_box", "gradient": "exact"},
}

Make = Callable[..., Plan]


@pytest.fixture
def brings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``brings(pretrained=...)`` gives the residual network this trait."""

    def give(**changed: Any) -> None:
        described = registry.describe("classifier", "wide_resnet")
        monkeypatch.setattr(
            registry, "classifier_traits", lambda name: described.traits.replace(**changed)
        )

    return give


@pytest.fixture
def plan(toy_plan: Make) -> Callable[..., list[ClassifierSpec]]:
    """``plan(row={...}, ...)``: the specs of the classifiers behind a table with these rows."""

    def make(**rows: dict[str, Any]) -> list[ClassifierSpec]:
        runs = toy_plan(PAPER, CELL, rows=rows, columns={"column": {}}).runs.values()
        return [run.spec for run in runs if isinstance(run.spec, ClassifierSpec)]

    return make


def test_weights_that_are_brought_depend_on_no_images_and_no_seed(
    plan: Callable[..., list[ClassifierSpec]], brings: Callable[..., None], tmp_path: Path
) -> None:
    brings(pretrained=True)
    scale = tmp_path / "workflow" / "scales" / "tiny.yaml"
    scale.write_text(scale.read_text().replace("seeds: [0]", "seeds: [3, 4]"))
    kept, *trained = plan(kept={}, trained={"training": "natural"})
    assert (kept.train, kept.seed) == (0, 0) and kept.training.component == "pretrained"
    assert [(spec.train, spec.seed) for spec in trained] == [(200, 3), (200, 4)]


@pytest.mark.parametrize(
    ("pretrained", "remedy"),
    [(False, "trains it$"), ("first_stride", "trains it, or set its first_stride$")],
)
def test_a_classifier_without_weights_is_refused(
    plan: Callable[..., list[ClassifierSpec]],
    brings: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    pretrained: bool | str,
    remedy: str,
) -> None:
    brings(pretrained=pretrained)
    if pretrained:
        monkeypatch.setattr(ClassifierTraits, "is_pretrained", lambda *_: False)
    with pytest.raises(
        UserError, match=f"'kept' keeps .* classifier 'small' brings none: .*{remedy}"
    ):
        plan(row={})


def test_pretrained_may_depend_on_a_parameter() -> None:
    traits = ClassifierTraits(version=1, pretrained="weights")
    assert traits.is_pretrained({"weights": "net.pt"}) and not traits.is_pretrained(
        {"weights": None}
    )
    assert traits.parameter_names()["pretrained"] == ("weights",)
    assert ClassifierTraits(version=1, pretrained=True).is_pretrained({})
    assert not ClassifierTraits(version=1).is_pretrained({})


def test_another_seed_of_the_same_weights_is_refused(
    plan: Callable[..., list[ClassifierSpec]], brings: Callable[..., None]
) -> None:
    brings(pretrained=True)
    source = {"classifier": "wide", "training": "kept"}
    cell = {"threat_model": "transfer", "source": source}
    assert len(plan(row=cell)) == 2
    source["seed_offset"] = 1
    with pytest.raises(UserError, match="source: training 'kept' has the same weights for every"):
        plan(row=cell)
