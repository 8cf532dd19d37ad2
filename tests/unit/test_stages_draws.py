"""Stages that look at several random draws, at scores of a method, and at its steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core import active
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build, frozen
from purifiers.core.errors import UserError
from purifiers.core.evaluation import defender_seed, finite_logits, predicted, purified
from purifiers.core.spec import (
    ImagesSpec,
    MethodSpec,
    NormSpec,
    PredictSpec,
    PurifySpec,
    ScoreSpec,
    Smoothing,
    SmoothSpec,
    Spec,
    Subset,
    TraceSpec,
)
from purifiers.methods.adp import Adp
from purifiers.methods.random_sign import RandomSign
from purifiers.plan.graph import component_spec
from purifiers.stages import norm, predict, purify, score, smooth, trace
from purifiers.stages._context import Context, Outcome
from purifiers.stages._opening import open_classifier, open_images

from .host_reads import host_reads

IMAGES = ImagesSpec(data="digits", subset=Subset(split="test", n=24, seed=0), run=None)


class Stages:
    """Runs of single stages in a folder with a data set and untrained classifiers."""

    def __init__(self, runs_root: Path) -> None:
        self.context = Context(runs_root, "cpu", 1, 16, 60.0)

    def run(self, stage: ModuleType, spec: Spec, name: str) -> Outcome:
        folder = self.context.folder(spec.stage, name)
        folder.path.mkdir(parents=True)
        outcome: Outcome = stage.run(folder, spec, self.context)
        folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
        return outcome

    def folder(self, stage: str, name: str) -> RunFolder:
        return self.context.folder(stage, name)

    def rows(self, stage: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder(stage, name).path / "scores.parquet")


@pytest.fixture
def stages(untrained_runs: Path) -> Stages:
    return Stages(untrained_runs)


def method(name: str, **parameters: Any) -> MethodSpec:
    spec = component_spec("method", name, parameters)
    return MethodSpec(
        component=spec.component, version=spec.version, parameters=spec.parameters, run=None
    )


NOISE = method("random_sign", eps=0.3)
SPEC = PredictSpec(images=IMAGES, classifier="one", methods=(NOISE,), first_draw=0, draws=4, seed=5)


def draws_by_hand(stages: Stages, draws: int) -> np.ndarray:
    """Predictions (n, draws), image by image."""
    images = open_images(stages.context, IMAGES)
    batch, _, indices = images.batch(0, len(images), "cpu")
    classifier = open_classifier(stages.context, "one")
    noise = RandomSign(eps=0.3)
    of_draw = [predicted(classifier, purified(noise, batch, 5, indices, d)) for d in range(draws)]
    return torch.stack(of_draw, dim=1).numpy()


def test_a_random_transform_is_stored_for_pictures(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PurifySpec(images=IMAGES, classifier="one", method=NOISE, seed=5)
    assert stages.run(purify, spec, "without").files == ["images.npy"]
    monkeypatch.setattr(RandomSign, "transformed", RandomSign.purify)  # the same draw
    assert stages.run(purify, spec, "with").files == ["images.npy", "transformed.npy"]
    folder = stages.folder("purify", "with").path
    images, transformed = np.load(folder / "images.npy"), np.load(folder / "transformed.npy")
    assert transformed.dtype == np.uint8
    assert np.array_equal(transformed, np.round(255 * images))


def test_each_draw_is_the_defenders_draw_of_its_number(stages: Stages) -> None:
    stages.run(predict, SPEC, "first")
    logits = np.load(stages.folder("predict", "first").path / "logits.npy")
    assert logits.shape == (24, 4, 10)
    expected = draws_by_hand(stages, 4)
    assert np.array_equal(logits.argmax(2), expected)
    assert (expected[:, :1] != expected).any(), "the draws must differ for this test to tell"


@pytest.mark.parametrize(("draws", "how"), [(3, "argmax"), (3, "any"), (6, "any")])
def test_a_score_combines_the_first_draws(stages: Stages, draws: int, how: str) -> None:
    stages.run(predict, SPEC, "first")
    stages.run(predict, dataclasses.replace(SPEC, first_draw=4), "second")
    spec = ScoreSpec(
        images=IMAGES,
        classifier="one",
        attack=None,
        predictions=("first", "second"),
        draws=draws,
        combine_draws=how,
    )
    stages.run(score, spec, "combined")
    rows = stages.rows("score", "combined")
    votes = draws_by_hand(stages, draws)
    if how == "any":
        expected = (votes == rows["label"].to_numpy()[:, None]).all(axis=1)
    else:
        majority = np.array([np.bincount(v, minlength=10).argmax() for v in votes])
        expected = majority == rows["label"].to_numpy()
    assert np.array_equal(rows["correct"].to_numpy(), expected)
    assert rows["linf"].isna().all() and (rows["attack_linf"] == 0).all()


@pytest.mark.parametrize(
    ("draws", "how", "expected"),
    [
        (2, "logits", 0),  # means 5, 4.25, 2.05
        (2, "softmax", 1),  # means .25, .47, .25
        (2, "argmax", 2),  # one, one and two votes
        (1, "logits", 0),  # 10, 2, 2.05
        (1, "softmax", 0),  # .50, .22, .25
    ],
)
def test_a_score_combines_all_steps_of_its_draws(
    stages: Stages, draws: int, how: str, expected: int
) -> None:
    logits = np.zeros((24, 2, 2, 10), dtype=np.float32)  # images, draws, steps, classes
    logits[:, 0, 0, 0] = 20.0
    logits[:, 1, 0, 1] = 9.0
    logits[:, :, 1, 1:3] = 4.0, 4.1  # class 2 in the last steps of both draws
    folder = stages.folder("predict", "by hand")
    folder.path.mkdir(parents=True)
    np.save(folder.path / "logits.npy", logits)
    spec = dataclasses.replace(SPEC, draws=2, all_steps=True)
    folder.finish(spec, ["logits.npy"], {}, 0.0, {})
    combined = ScoreSpec(
        images=IMAGES,
        classifier="one",
        attack=None,
        predictions=("by hand",),
        draws=draws,
        combine_draws=how,
        all_steps=True,
    )
    stages.run(score, combined, "combined")
    assert set(stages.rows("score", "combined")["prediction"]) == {expected}


def test_predictions_of_other_images_are_refused(stages: Stages) -> None:
    stages.run(predict, SPEC, "first")
    fewer = ImagesSpec(data="digits", subset=Subset(split="test", n=8, seed=0), run=None)
    spec = ScoreSpec(
        images=fewer,
        classifier="one",
        attack=None,
        predictions=("first",),
        draws=2,
        combine_draws="any",
    )
    with pytest.raises(UserError, match=r"logits\.npy: has shape .* expected 8 images"):
        stages.run(score, spec, "fewer")


def test_smoothing_without_noise_certifies_every_prediction(stages: Stages) -> None:
    """Noise of 1e-6 changes no prediction: all votes agree, and the radius is the bound's."""
    smoothing = Smoothing(sigma=1e-6, selection=3, estimation=20, alpha=0.01)
    spec = SmoothSpec(images=IMAGES, classifier="one", methods=(), smoothing=smoothing, seed=5)
    outcome = stages.run(smooth, spec, "smoothed")
    rows = stages.rows("smooth", "smoothed")
    images = open_images(stages.context, IMAGES)
    batch, _, _ = images.batch(0, len(images), "cpu")
    plain = predicted(open_classifier(stages.context, "one"), batch).numpy()
    assert np.array_equal(rows["prediction"].to_numpy(), plain)
    correct = plain == rows["label"].to_numpy()
    # p = alpha^(1/n) = 0.7943, whose normal quantile is 0.8215
    assert rows["radius"].to_numpy() == pytest.approx(np.where(correct, 0.8215e-6, 0.0), rel=1e-3)
    assert outcome.summary["n_correct"] == correct.sum()
    assert rows["predict_correct"].tolist() == correct.tolist()


def test_the_host_does_not_wait_for_votes(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "reads_are_free", lambda device: False)
    reads = []
    for votes in (20, 40):
        smoothing = Smoothing(sigma=0.1, selection=votes, estimation=votes, alpha=0.01)
        spec = SmoothSpec(images=IMAGES, classifier="one", methods=(), smoothing=smoothing, seed=5)
        with host_reads(monkeypatch) as counted:
            stages.run(smooth, spec, f"of {votes} votes")
        reads.append(sum(counted.values()))
    assert reads[0] == reads[1]


@pytest.mark.parametrize("free", [True, False])
def test_votes_of_a_broken_network_are_refused(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    monkeypatch.setattr(active, "reads_are_free", lambda device: free)
    monkeypatch.setattr(
        WideResnet, "forward", lambda _, images: images.new_full((16, 10), torch.nan)
    )
    smoothing = Smoothing(sigma=0.1, selection=20, estimation=20, alpha=0.01)
    spec = SmoothSpec(images=IMAGES, classifier="one", methods=(), smoothing=smoothing, seed=5)
    with pytest.raises(RuntimeError, match="the model gave logits that are not finite"):
        stages.run(smooth, spec, "broken")


def adp(**parameters: Any) -> MethodSpec:
    return method("adp", width=2, blocks=1, iterations=3, score_levels=4, **parameters)


@pytest.fixture
def fitted(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Opening a method that was never fitted gives it random weights, the same every time."""

    def opened(context: Context, spec: MethodSpec, classifier: Any) -> Adp:
        made: Adp = build(Adp, **spec.parameters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made.bind(classifier, (1, 16, 16))
        frozen(made)
        return made

    for stage in (norm, predict, trace):
        monkeypatch.setattr(stage, "open_method", opened)
    return stages


def test_the_norm_of_a_score(fitted: Stages) -> None:
    for name, stepped in (("as_is", False), ("stepped", True)):
        spec = NormSpec(images=IMAGES, classifier="one", method=adp(), purified=stepped, seed=5)
        fitted.run(norm, spec, name)
    as_is, stepped = (fitted.rows("norm", n)["score_norm"].to_numpy() for n in ("as_is", "stepped"))
    images = open_images(fitted.context, IMAGES)
    batch, _, _ = images.batch(0, len(images), "cpu")
    score_of = norm.open_method(fitted.context, adp(), None).score
    with torch.no_grad():
        expected = torch.stack([score_of(image[None]).norm() for image in batch])
    assert as_is == pytest.approx(expected.numpy(), rel=1e-4)
    assert not np.allclose(as_is, stepped)


def test_a_prediction_of_all_steps(fitted: Stages) -> None:
    """The noisy image and the images after three steps, by the draw's own noise."""
    methods = (adp(sigma=0.1),)
    every = dataclasses.replace(SPEC, methods=methods, first_draw=1, draws=2, all_steps=True)
    for name, all_steps in (("last", False), ("every", True)):
        fitted.run(predict, dataclasses.replace(every, all_steps=all_steps), name)
    last, steps = (
        np.load(fitted.folder("predict", name).path / "logits.npy") for name in ("last", "every")
    )
    assert last.shape == (24, 2, 10) and steps.shape == (24, 2, 4, 10)
    assert np.allclose(steps[:, :, -1], last, atol=1e-5)
    images = open_images(fitted.context, IMAGES)
    batch, _, indices = images.batch(0, len(images), "cpu")
    classifier = open_classifier(fitted.context, "one")
    opened = predict.open_method(fitted.context, methods[0], None)
    for draw in (1, 2):
        with torch.no_grad():
            states = opened.states(batch, defender_seed(5, draw), indices)
        expected = torch.stack([finite_logits(classifier, state) for state in states], dim=1)
        assert np.allclose(steps[:, draw - 1], expected.numpy(), atol=1e-5)


def test_the_states_of_a_trace(fitted: Stages) -> None:
    spec = TraceSpec(images=IMAGES, classifier="one", method=adp(sigma=0.1), seed=5)
    fitted.run(trace, spec, "traced")
    rows = fitted.rows("trace", "traced")
    assert (rows["attacked"] == 0).all() and (rows["purified"] > 0).all()
    with np.load(fitted.folder("trace", "traced").path / "states.npz") as states:
        pixels, correct = states["pixels"], states["correct"]
    assert pixels.shape == (10, 5, 256) and correct.shape == (10, 5)  # image, noise, three steps
    images = open_images(fitted.context, IMAGES)
    batch, _, indices = images.batch(0, 1, "cpu")
    opened = trace.open_method(fitted.context, spec.method, None)
    assert np.array_equal(pixels[0, 0], batch.flatten().numpy())
    for draw in (0, 3):
        last = purified(opened, batch, 5, indices, draw).flatten().numpy()
        assert pixels[draw, -1] == pytest.approx(last, abs=1e-6)
