"""Predictions that combine several random draws of a defence."""

import dataclasses
from pathlib import Path

import pytest
import torch

from purifiers.core.draws import prediction
from purifiers.core.errors import UserError
from purifiers.core.spec import PredictSpec, ScoreSpec
from purifiers.plan.cells import Lowered
from purifiers.plan.limits import limited, lowered, spread
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import load_scale

ROOT = Path(__file__).parents[2]

# two images, three draws, three classes
LOGITS = torch.tensor(
    [
        [[9.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],
        [[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]],
    ]
)
LABELS = torch.tensor([1, 1])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("logits", [0, 1]),  # means 3, 2/3, 0: the sure draw decides
        ("softmax", [0, 1]),  # .9998 + 2 x .21 against .0001 + 2 x .58
        ("argmax", [1, 1]),  # two of three draws
        ("any", [0, 1]),  # the first draw is wrong
    ],
)
def test_four_ways_to_combine_draws(how, expected):
    assert prediction(LOGITS, LABELS, how).tolist() == expected


def test_any_returns_the_first_wrong_draw():
    logits = torch.eye(3)[torch.tensor([[1, 2, 0], [1, 1, 1]])]
    assert prediction(logits, LABELS, "any").tolist() == [2, 1]


def test_ties_of_the_majority_go_to_the_lower_class():
    logits = torch.eye(3)[torch.tensor([[2, 1]])]
    assert prediction(logits, torch.tensor([2]), "argmax").tolist() == [1]


@pytest.fixture(scope="module")
def figure_8():
    return make_plan(ROOT, "smoke", ["adp/figure_8"])


def test_all_points_of_a_curve_share_the_runs_of_their_draws(figure_8):
    predict = [run for run in figure_8.runs.values() if run.stage == "predict"]
    attacks = [run for run in figure_8.runs.values() if run.stage == "attack"]
    assert (len(predict), len(attacks)) == (1, 1)
    spec = predict[0].spec
    assert isinstance(spec, PredictSpec)
    assert (spec.first_draw, spec.draws) == (0, 2)  # the limit of the scale
    scores = [run.spec for run in figure_8.runs.values() if run.stage == "score"]
    combined = {(s.draws, s.combine_draws) for s in scores if isinstance(s, ScoreSpec)}
    assert {draws for draws, _ in combined} == {1, 2}
    assert {how for draws, how in combined if draws == 2} == {"logits", "softmax", "argmax"}


def test_limits_shorten_draws_samples_and_means():
    limits = {"draws": 2, "eot_samples": 3, "mean_over": 1}
    cell = {"draws": 10, "eot": {"samples": 15, "combine": "sign"}, "mean_over": {"a": [1, 2, 3]}}
    assert limited(cell, limits) == {
        "draws": 2,
        "eot": {"samples": 3, "combine": "sign"},
        "mean_over": {"a": [2]},
    }
    assert limited({"eot": 15}, limits) == {"eot": 3}
    override = {"attack.bpda": {"steps": 80, "eps": 0.1}, "method.idfr": {"steps": 80}}
    assert limited({"override": override}, {"steps": 40})["override"] == {
        "attack.bpda": {"steps": 40, "eps": 0.1},
        "method.idfr": {"steps": 80},
    }
    changed = {"override": override}
    (fewer,) = lowered(changed, limited(changed, {"steps": 40}))
    assert str(fewer) == "40 of 80 attack steps"
    assert limited(cell, {}) == cell
    assert [str(fewer) for fewer in lowered(cell, limited(cell, limits))] == [
        "2 of 10 draws",
        "3 of 15 EOT samples",
        "1 of 3 values of a",
    ]
    assert lowered(cell, cell) == ()


@pytest.mark.parametrize(("votes", "selection"), [(24, 24), (1000, 100)])
def test_a_limit_of_votes_also_bounds_those_that_choose(votes, selection):
    smoothing = limited({"smoothing": {"sigma": 0.5}}, {"votes": votes})["smoothing"]
    assert (smoothing["sigma"], smoothing["estimation"]) == (0.5, votes)
    assert smoothing["selection"] == selection
    cell = {"smoothing": {"sigma": 0.5}}
    assert lowered(cell, {"smoothing": smoothing}) == (Lowered("votes", 100000, votes),)


def test_a_documents_limits_count_most():
    declared = {
        "limits": {"draws": 2, "votes": 24},
        "papers": {"adp": {"limits": {"draws": 5}, "documents": {"f": {"limits": {"draws": 30}}}}},
    }
    scale = dataclasses.replace(load_scale(ROOT, "smoke"), declared=declared)
    assert scale.limits("aid") == {"draws": 2, "votes": 24}
    assert scale.limits("adp")["draws"] == scale.limits("adp", "g")["draws"] == 5
    assert scale.limits("adp", "f") == {"draws": 30, "votes": 24}


def test_spread_takes_the_middles():
    assert spread([1, 2, 3, 4, 5], 1) == [3]
    assert spread([1, 2, 3, 4, 5], 2) == [2, 4]
    assert spread([1, 2], 5) == [1, 2]


PAPER = {
    "classifiers": {"cnn": {"component": "vgg"}},
    "trainings": {"natural": {"component": "natural"}},
    "methods": {
        "adp": {"component": "adp", "iterations": 3},
        "jpeg": {"component": "jpeg"},
        "tent": {"component": "tent"},
    },
    "attacks": {"pgd": {"component": "pgd", "eps": 0.1}},
}
CELL = {"dataset": "digits", "classifier": "cnn", "training": "natural", "methods": ["adp"]}
CELL |= {"attack": "pgd", "threat_model": "oblivious"}


@pytest.fixture
def planned(toy_plan):
    def make(rows, **cell):
        return toy_plan(PAPER, {**CELL, **cell}, rows, {"column": {}})

    return make


def test_a_distance_of_several_draws_is_refused(planned):
    with pytest.raises(UserError, match="mean_l2 needs a single purified image"):
        planned({"row": {}}, draws=5, metric="mean_l2")


def of_stage(plan, stage):
    return [run for run in plan.runs.values() if run.stage == stage]


def test_all_steps_are_further_draws_of_runs_of_their_own(planned):
    steps = {"all_steps": True}
    rows = {"last": {}, "all": steps, "mean": {**steps, "combine_draws": "logits"}}
    plan = planned(rows, draws=5)
    last, every = sorted(of_stage(plan, "predict"), key=lambda run: run.spec.all_steps)
    assert (last.spec.all_steps, every.spec.all_steps) == (False, True)
    assert "all_steps" not in last.spec.to_json()
    assert (every.spec.first_draw, every.spec.draws) == (0, 5)
    (more,) = {every.cost[key] - last.cost[key] for key in every.cost} - {0.0}
    classified = next(key for key in last.cost if key.startswith("vgg"))
    assert more == 3 * last.cost[classified]  # 4 images of a draw instead of 1
    scores = {(s.spec.combine_draws, s.spec.all_steps) for s in of_stage(plan, "score")}
    assert scores == {("softmax", False), ("softmax", True), ("logits", True)}
    (document,) = plan.documents.values()
    remarks = {cell.row: cell.flags[-1].text for cell in document.cells}
    text = "prediction: mean of the probabilities of 5 random draws"
    assert remarks["last"] == text
    assert remarks["all"] == f"{text}, each with the images of all steps"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"methods": ["jpeg"]}, "all_steps is true, but jpeg has no steps to classify: remove"),
        ({"methods": ["jpeg", "adp"]}, "all_steps needs exactly one method, not 2: correct"),
        ({"methods": []}, "all_steps needs exactly one method, not 0: correct"),
        ({"metric": "mean_l2"}, "metric mean_l2 needs a single purified image, but .* all steps"),
    ],
)
def test_all_steps_are_refused_where_there_are_none(planned, cell, message):
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        planned({"row": {"all_steps": True, **cell}})


def test_what_adapts_to_its_batches_is_not_smoothed(planned):
    smoothed = {"metric": "smoothed_accuracy", "smoothing": {"sigma": 0.25}}
    with pytest.raises(UserError, match=r"tent adapts .* needs votes of one fixed classifier: "):
        planned({"row": {"methods": ["tent"], "attack": "none", **smoothed}})
