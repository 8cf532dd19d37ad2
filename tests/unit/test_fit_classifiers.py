"""``fit_classifiers``: a purifier fitted on some classifiers protects another, plan to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from purifiers.core.artifacts import Record, RunFolder
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    AttackSpec,
    ClassifierSpec,
    ImagesSpec,
    PurifierSpec,
    ScoreSpec,
    Subset,
)
from purifiers.methods.adv_ae import AdvAe
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.plan import Plan
from purifiers.report.results import Results, ScoreRun
from purifiers.stages.job import run_batch

NETWORK = {"component": "wide_resnet", "depth": 10, "widen_factor": 1, "first_stride": 2}
BRIEF = {"width": 2, "steps": 1, "step_size": 0.1, "epochs": 0.2, "batch_size": 16}
PAPER = {
    "classifiers": {
        "x": NETWORK,
        "a": {"component": "advae_d", "width": 20},
        "b": {"component": "advae_d", "width": 10},
    },
    "trainings": {"natural": {"component": "natural", "epochs": 0.5, "batch_size": 32}},
    "methods": {
        "identity": {"component": "identity"},
        "advae": {"component": "adv_ae", **BRIEF, "eps": 0.1, "eps_ramp": 0.5},
        "hgd": {"component": "hgd", **BRIEF, "eps": 0.1},
        "aid": {"component": "aid", "width": 8},
        "pixel_defend": {
            **{"component": "pixel_defend", "eps": 0.1, "scales": 1, "blocks": 1, "filters": 2},
            **{"mixtures": 1, "dropout": 0.0, "epochs": 0.2, "batch_size": 16},
        },
    },
    "attacks": {"pgd": {"component": "pgd", "eps": 0.1, "steps": 2, "step_size": 0.05}},
}
DEFAULTS = {
    **{"dataset": "digits", "classifier": "x", "training": "natural", "methods": ["advae"]},
    **{"attack": "pgd", "threat_model": "white_box", "gradient": "exact"},
}

Make = Callable[..., Plan]


@pytest.fixture
def make(toy_plan: Make) -> Make:
    """``make(row={...}, other={...})``: the plan of a table with one cell per row."""
    return lambda **cells: toy_plan(PAPER, DEFAULTS, rows=cells, columns={"column": {}})


def behind(plan: Plan, stage: str) -> dict[str, list[Run]]:
    """The runs of a stage behind each row."""
    found = {}
    for cell in plan.documents["toy/table_1"].cells:
        assert cell.state == "planned", cell.reason
        runs = with_ancestors([plan.runs[cell.scores[0][0]]])
        found[cell.row] = [run for run in runs if run.stage == stage]
    return found


def component(run: Run) -> str:
    assert isinstance(run.spec, ClassifierSpec)
    return run.spec.classifier.component


def run(plan: Plan) -> None:
    """All batches of a plan, in the order of their stages."""
    plan.write_specs()
    for batch in dict.fromkeys(plan.batches.values()):
        entries = [
            {"id": r.id, "spec": r.spec.to_json(), "passes": 0, "size_bytes": 0} for r in batch.runs
        ]
        content = {"stage": batch.stage, "batch": batch.id, "runs": entries, "device": "cpu"}
        content |= {"batch_size": 32, "checkpoint_seconds": 60.0}
        assert run_batch(content, plan.root / batch.manifest_name, plan.runs_root, 1) == 0


# What is planned


def test_one_fit_protects_any_classifier(make: Make) -> None:
    """X in front of itself, said or not, and of others: one run of the purifier."""
    plan = make(
        unsaid={},
        said={"fit_classifiers": ["x"]},
        other={"classifier": "a", "fit_classifiers": ["x"]},
        oblivious={"classifier": "b", "fit_classifiers": ["x"], "threat_model": "oblivious"},
    )
    fits = behind(plan, "purifier")
    (run,) = {run.id: run for runs in fits.values() for run in runs}.values()
    assert all(len(runs) == 1 for runs in fits.values())
    assert [component(i) for i in run.inputs if i.stage == "classifier"] == ["wide_resnet"]
    assert isinstance(run.spec, PurifierSpec) and run.spec.ensemble == ()
    assert "ensemble" not in run.spec.to_json()
    (attack,) = behind(plan, "attack")["other"]
    assert isinstance(attack.spec, AttackSpec) and attack.spec.classifier is not None
    assert component(plan.runs[attack.spec.classifier]) == "advae_d"
    assert [method.run for method in attack.spec.methods] == [run.id]


def test_an_ensemble_is_another_fit_made_from_all_of_its_classifiers(make: Make) -> None:
    plan = make(
        one={"classifier": "a", "fit_classifiers": ["x"]},
        three={"classifier": "a", "fit_classifiers": ["x", "a", "b"]},
        own={"classifier": "a"},
        hgd={"classifier": "a", "fit_classifiers": ["x", "a"], "methods": ["hgd"]},
    )
    fits = {row: runs[0] for row, runs in behind(plan, "purifier").items()}
    assert len({run.id for run in fits.values()}) == 4
    three = fits["three"]
    trained = [run for run in three.inputs if run.stage == "classifier"]
    assert isinstance(three.spec, PurifierSpec)
    assert [*three.spec.classifiers] == [run.id for run in trained]
    specs = [run.spec for run in trained if isinstance(run.spec, ClassifierSpec)]
    assert [spec.classifier.parameters.get("width") for spec in specs] == [None, 20, 10]
    assert {spec.seed for spec in specs} == {0}
    assert three.passes == 3 * fits["one"].passes
    assert "adv_ae_and_advae_d_and_advae_d" in three.id
    upstream = {batch.stage for batch in plan.batches[three.id].upstream}
    assert upstream == {"dataset", "classifier"}


def test_what_needs_no_fit_does_not_care(make: Make) -> None:
    plan = make(row={"methods": ["identity"], "fit_classifiers": ["x", "a"]})
    assert behind(plan, "purifier")["row"] == []
    assert len(behind(plan, "classifier")["row"]) == 1


@pytest.mark.parametrize(
    ("classifier", "names", "listed", "taps"),
    [("x", ["x", "a"], "x, a", ["conv1", "stage3"]), ("a", ["x"], "x", ["dense1", "dense2"])],
)
def test_a_method_that_listens_to_its_classifier_is_fitted_on_no_other(
    make: Make, classifier: str, names: list[str], listed: str, taps: list[str]
) -> None:
    override = {"method.aid": {"taps": taps}}
    cell = {"methods": ["aid"], "classifier": classifier, "override": override}
    with pytest.raises(UserError, match=rf"'aid' can only be fitted on .*not on {listed}: remove"):
        make(row={**cell, "fit_classifiers": names})
    own = {**cell, "fit_classifiers": [classifier]}
    told, unsaid = make(row=own), make(row=cell)
    assert behind(told, "purifier") == behind(unsaid, "purifier")


def test_an_unknown_classifier_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="'y'"):
        make(row={"fit_classifiers": ["x", "y"]})


# What is run


def test_from_fit_to_score(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All named classifiers are fitted on; the rows' numbers are there, and the distances are those
    of the attack: within its eps, whatever the purifier makes of its images."""
    told: list[tuple[list[str], int]] = []
    own = AdvAe.fit_on

    def spy(method: AdvAe, classifiers: Sequence[Classifier], images: int) -> None:
        told.append(([type(classifier).__name__ for classifier in classifiers], images))
        own(method, classifiers, images)

    monkeypatch.setattr(AdvAe, "fit_on", spy)
    plan = make(
        ensemble={"classifier": "a", "fit_classifiers": ["x", "b"]},
        distance={"classifier": "a", "fit_classifiers": ["x", "b"], "metric": "mean_linf"},
        clean={"fit_classifiers": ["x", "b"], "attack": "none", "metric": "mean_l2"},
        undefended={"methods": [], "metric": "mean_l2"},
    )
    run(plan)
    assert told == [(["WideResnet", "AdvaeD"], 200)]
    runs = Results(plan.runs_root, lambda _: None)
    cells = {cell.row: cell for cell in plan.documents["toy/table_1"].cells}
    found = {row: runs.find(cell).seeds[0][0] for row, cell in cells.items()}
    assert found["ensemble"].id == found["distance"].id
    values = {row: found[row].value(cell.metric) for row, cell in cells.items()}
    assert values["ensemble"] is not None and 0.0 <= values["ensemble"] <= 100.0
    assert values["distance"] == pytest.approx(0.1, abs=1e-6)
    assert values["clean"] == 0.0
    scores = found["distance"].scores
    assert (scores["linf"] > 0.1 + 1e-3).all()  # an auto-encoder hardly fitted changes a lot
    bare = found["undefended"].scores
    assert np.allclose(bare["attack_l2"], bare["l2"]) and values["undefended"] == bare["l2"].mean()

    (fit,) = behind(plan, "purifier")["ensemble"]
    summary = RunFolder(plan.runs_root, "purifier", fit.id).record().summary
    assert summary["parameters"] == 161  # the auto-encoder's alone, of width 2


def test_scores_of_before_have_no_distances_of_the_attack(tmp_path: Path) -> None:
    """Then the metric is missing, and not taken from the purified image."""
    columns = {"index": [0], "correct": [True], "linf": [0.3], "l2": [2.0]}
    pd.DataFrame(columns).to_parquet(tmp_path / "scores.parquet")
    images = ImagesSpec(data="toy", subset=Subset(split="test", n=1, seed=0), run=None)
    spec = ScoreSpec(images=images, classifier="net", attack=None)
    record = Record("old", "score", spec, {}, {"n_correct": 1, "n": 1}, 0.0, {})
    run = ScoreRun("old", tmp_path, record)
    assert run.value("mean_l2") is None and run.value("accuracy") == 100.0


def test_what_is_fitted_on_images_alone_is_fitted_once(make: Make) -> None:
    """One PixelDefend for two classifiers, and it needs neither of them to be there."""
    plan = make(
        one={"methods": ["pixel_defend"], "threat_model": "oblivious"},
        other={"methods": ["pixel_defend"], "threat_model": "oblivious", "classifier": "a"},
    )
    fits = behind(plan, "purifier")
    (fit,) = {run.id: run for runs in fits.values() for run in runs}.values()
    assert {run.stage for run in fit.inputs} == {"dataset"}
    assert isinstance(fit.spec, PurifierSpec) and fit.spec.classifier is None
    assert fit.spec.to_json()["classifier"] is None
    run(plan)
    runs = Results(plan.runs_root, lambda _: None)
    for cell in plan.documents["toy/table_1"].cells:
        assert len(runs.find(cell).seeds[0][0].scores) == 64
