"""Robust self-training: hidden labels, half-and-half batches, and a teacher that survives kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec
from purifiers.plan.cells import Flag
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import Plan
from purifiers.stages.job import run_batch
from purifiers.training import rst
from purifiers.training.rst import Rst

IMAGES = 64
BRIEF = {
    **{"epochs": 2, "teacher_epochs": 2, "batch_size": 16, "steps": 1, "eps": 0.1},
    **{"step_size": 0.1, "unlabelled": 0.25, "learning_rate": 0.05},
}


class Linear(Classifier):
    """Logits = W x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__((1, 1, weight.shape[1]), weight.shape[0])
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


# the loss


def test_loss_by_hand(monkeypatch):
    """Cross entropy of the clean images plus beta times the mean divergence."""
    weight = torch.tensor([[1.0, -1.0], [0.0, 2.0], [0.5, 0.5]])
    images, labels = torch.tensor([[0.2, 0.9], [0.7, 0.1]]).view(2, 1, 1, 2), torch.tensor([1, 0])
    neighbours = torch.tensor([[0.4, 0.7], [0.5, 0.3]]).view(2, 1, 1, 2)
    monkeypatch.setattr(Rst, "neighbours", lambda *_: neighbours)
    loss = Rst(beta=6.0).loss(Linear(weight), images, labels, torch.arange(2), 0)
    p = softmax(images.view(2, 2).numpy() @ weight.numpy().T)
    q = softmax(neighbours.view(2, 2).numpy() @ weight.numpy().T)
    expected = -np.log(p[[0, 1], [1, 0]]).mean() + 6.0 * (p * np.log(p / q)).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_two_passes_the_adversarial_one_first(monkeypatch):
    """Two batches for batch normalisation; a third, as in TRADES, would count clean ones twice."""
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 3)).train()
    images, neighbours = torch.rand(4, 1, 1, 2), torch.rand(4, 1, 1, 2) + 5
    seen: list[float] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].max())))
    monkeypatch.setattr(Rst, "neighbours", lambda *_: neighbours)
    Rst().loss(network, images, torch.tensor([0, 1, 2, 0]), torch.arange(4), 0)
    assert len(seen) == 2 and seen[0] > 5 > 1 >= seen[1]


# hidden labels and batches


def test_hidden_labels_are_a_share_drawn_with_the_seed():
    training = Rst(unlabelled=0.25)
    labelled, unlabelled = training.hidden(1000, 3)
    assert len(unlabelled) == 250
    assert sorted([*labelled.tolist(), *unlabelled.tolist()]) == list(range(1000))
    assert not torch.equal(unlabelled, training.hidden(1000, 4)[1])


@pytest.mark.parametrize(("unlabelled", "passes"), [(0.5, 1), (0.8, 3)])
def test_each_batch_has_both_kinds(unlabelled, passes):
    """Half of each batch; every labelled image is taken before one of them is taken again."""
    training = Rst(unlabelled=unlabelled, batch_size=20)
    labelled, _ = training.hidden(100, 7)
    order = training.order(100, 7)
    epochs = [order(torch.arange(100), epoch).view(5, 20) for epoch in (0, 1)]
    for epoch in epochs:
        own = torch.isin(epoch, labelled)
        assert (own.sum(1) == 10).all()
        counts = torch.bincount(epoch[own], minlength=100)[labelled]
        assert counts.max() == passes and counts.max() - counts.min() <= 1
    assert not torch.equal(*epochs)
    assert torch.equal(order(torch.arange(100), 1).view(5, 20), epochs[1])


def test_a_share_of_the_batch():
    training = Rst(batch_size=8, unlabelled_per_batch=0.25)
    labelled, _ = training.hidden(50, 0)
    rows = training.order(50, 0)(torch.arange(50), 0)
    assert len(rows) == 56  # 7 whole batches
    assert (torch.isin(rows.view(7, 8), labelled).sum(1) == 6).all()


def test_published_recipe():
    recipe = Rst().recipe
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (200, 256, 5e-4)
    assert (recipe.optimizer, recipe.schedule) == ("nesterov", "cosine")
    assert recipe.rate(1, 2) == pytest.approx(0.05)
    training = Rst()
    assert (training.beta, training.eps, training.drawn) == (6, 0.031, 128)
    assert (training.steps, training.step_size) == (10, 0.007)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"unlabelled": 0.0}, r"unlabelled is 0.0, but takes a number in \(0, 1\)"),
        ({"unlabelled_per_batch": 0.0}, "unlabelled_per_batch is 0.0 of a batch of 256: choose"),
        ({"unlabelled_per_batch": 1.0}, "unlabelled_per_batch is 1.0 of a batch of 256: choose"),
        ({"batch_size": 1}, "unlabelled_per_batch is 0.5 of a batch of 1: choose"),
        ({"validation": 0.1}, "rst: validation needs true labels"),
    ],
)
def test_bad_parameters_are_one_line(parameters, message):
    with pytest.raises(UserError, match=message) as refused:
        Rst(**parameters)
    assert "\n" not in str(refused.value)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="rst: unlabelled hides the labels of 0 of 4 images"):
        Rst(unlabelled=0.1).hidden(4, 0)


# the teacher


def train(runs_root: Path, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a classifier, as a job does; its weights and the summary of its record."""
    spec = ClassifierSpec(
        data="digits",
        train=IMAGES,
        classifier=component_spec(
            "classifier", "wide_resnet", {"depth": 10, "widen_factor": 1, "first_stride": 2}
        ),
        training=component_spec("training", "rst", BRIEF),
        seed=0,
    )
    batch = {
        **{"stage": "classifier", "batch": "trainings", "device": "cpu", "batch_size": 16},
        **{"checkpoint_seconds": 0.0},
        "runs": [{"id": run, "spec": spec.to_json(), "passes": 0, "size_bytes": 0}],
    }
    assert run_batch(batch, runs_root / "done.json", runs_root, 1) == 0
    folder = RunFolder(runs_root, "classifier", run)
    assert not (folder.path / "phases").exists()
    return load_file(folder.path / "weights.safetensors"), folder.record().summary


def test_a_killed_training_ends_with_the_same_weights(
    untrained_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the teacher's training, between both trainings, and in the student's."""
    whole, summary = train(untrained_runs, "whole")
    # two epochs of 48 labelled images and of all 64, in batches of 16
    assert (summary["teacher"]["steps"], summary["steps"]) == (6, 8)
    assert 0.0 <= summary["teacher"]["accuracy"] <= 1.0
    assert summary["train_seconds"] >= summary["teacher"]["train_seconds"] > 0.0

    calls, fatal = {"teacher": 0, "labels": 0, "student": 0}, {}

    def counted(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if calls[name] == fatal.get(name):
                raise KeyboardInterrupt
            calls[name] += 1
            return own(*arguments, **options)

        return call

    class Functional:
        cross_entropy = staticmethod(counted("teacher", nn.functional.cross_entropy))

    labels_of = counted("labels", rst._predicted)
    monkeypatch.setattr(rst, "functional", Functional)
    monkeypatch.setattr(rst, "_predicted", labels_of)
    monkeypatch.setattr(Rst, "loss", counted("student", Rst.loss))
    for name, number in (("teacher", 3), ("labels", 0), ("student", 0), ("student", 5)):
        fatal.clear()
        fatal[name] = number
        with pytest.raises(KeyboardInterrupt):
            train(untrained_runs, "again")
    fatal.clear()
    again, second = train(untrained_runs, "again")
    # the student's loss has a cross entropy too; the teacher's last step was done again
    assert calls == {"teacher": 6 + 1 + 8, "labels": 1, "student": 8}
    assert second["teacher"]["accuracy"] == summary["teacher"]["accuracy"]
    for name, weights in whole.items():
        assert torch.equal(again[name], weights), name


def test_only_hidden_labels_are_the_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The teacher never sees them, and the classifier is left alone."""
    training = Rst(**{**BRIEF, "learning_rate": 0.5, "teacher_epochs": 40})
    pixels = np.random.RandomState(0).rand(IMAGES, 1, 1, 6).astype(np.float32)
    labels = pixels[:, 0, 0, :3].argmax(1)
    _, unlabelled = training.hidden(IMAGES, 5)
    wrong = labels.copy()
    wrong[unlabelled.numpy()] = 2
    classifier = Linear(torch.zeros(3, 6))
    at = rst.fitting.Workplace(tmp_path, "run", "run", "cpu", 16, 60.0, quiet=True)
    mixed, earlier = training.targets(classifier, pixels, labels, 5, at)
    (tmp_path / "phases/teacher/labels").unlink()
    (tmp_path / "phases/teacher/checkpoint").unlink(missing_ok=True)
    blind, _ = training.targets(classifier, pixels, wrong, 5, at)
    assert np.array_equal(mixed, blind)
    others = np.setdiff1d(np.arange(IMAGES), unlabelled.numpy())
    assert np.array_equal(mixed[others], labels[others])
    assert earlier["teacher"]["accuracy"] == np.mean(mixed[unlabelled] == labels[unlabelled])
    assert earlier["teacher"]["accuracy"] > 0.8  # it learned from images and their own labels
    assert not classifier.weight.any()
    assert json.dumps(earlier)


# the remark


def test_a_table_tells_what_stands_in(toy_plan: Callable[..., Plan]) -> None:
    paper = {
        "classifiers": {"net": {"component": "wide_resnet"}},
        "trainings": {
            "rst": {"component": "rst", "unlabelled": 0.4},
            "plain": {"component": "natural"},
        },
        **{"methods": {}, "attacks": {"pgd": {"component": "pgd"}}},
    }
    cell = {"dataset": "digits", "classifier": "net", "methods": [], "threat_model": "oblivious"}
    rows = {name: {"training": name} for name in ("rst", "plain")}
    columns = {name: {"attack": name} for name in ("none", "pgd")}
    plan = toy_plan(paper, cell, rows=rows, columns=columns)
    (document,) = plan.documents.values()
    text = (
        "held-out images with hidden labels (0.4 of the training images) stand in for the 500,000 "
        "pseudo-labelled images"
    )
    flags = {(c.row, c.column): c.flags for c in document.cells}
    for column in columns:
        assert flags["rst", column] == (Flag("remark", text),)
        assert flags["plain", column] == ()
