"""The audit of a defence from Python gives the counts of the workflow's runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import purifiers
from purifiers.__main__ import main
from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build
from purifiers.core.image_file import read_image_file
from purifiers.core.spec import AttackSpec, MethodSpec, PurifySpec, ScoreSpec
from purifiers.stages import attack, purify, score
from purifiers.stages._context import Context
from purifiers.stages._opening import open_classifier, open_images, open_method


def stage_count(module: Any, folder: RunFolder, spec: Any, context: Context) -> int:
    folder.path.mkdir(parents=True, exist_ok=True)
    outcome = module.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    return outcome.summary.get("n_correct", -1)


GRADIENTS = ("bpda", "exact", "second_order")


def white_box_count(
    context: Context, oblivious: AttackSpec, method: MethodSpec, gradient: str
) -> int:
    """Correct images after the chain of a white-box cell, stage by stage."""
    root, name = context.runs_root, f"own-{gradient}"
    white_box = dataclasses.replace(oblivious, methods=(method,), gradient=gradient)
    stage_count(attack, RunFolder(root, "attack", name), white_box, context)
    attacked = dataclasses.replace(oblivious.images, run=name, stage="attack")
    assert oblivious.classifier is not None
    purification = PurifySpec(
        images=attacked, classifier=oblivious.classifier, method=method, seed=oblivious.seed
    )
    stage_count(purify, RunFolder(root, "purify", name), purification, context)
    scored = ScoreSpec(
        images=dataclasses.replace(oblivious.images, run=name, stage="purify"),
        classifier=oblivious.classifier,
        attack=oblivious.attack,
    )
    return stage_count(score, RunFolder(root, "score", name), scored, context)


def test_the_audit_equals_the_stages(finished: Any) -> None:
    root: Path = finished.runs
    context = Context(root, "cpu", 1, 64, 60.0)
    oblivious = RunFolder(root, "attack", finished.folder("attack", "*natural-pgd*").name)
    spec = oblivious.record().spec_as(AttackSpec)
    assert spec.classifier is not None
    purifications = [
        RunFolder(root, "purify", path.name).record().spec_as(PurifySpec)
        for path in (root / "purify").glob("*natural-pgd*")
    ]
    (method,) = [s.method for s in purifications if s.images.run == oblivious.id]
    stored = {
        (record.attack.component if record.attack else "clean", record.images.stage): summary
        for record, summary in (
            (run.spec_as(ScoreSpec), run.summary["n_correct"])
            for run in (
                RunFolder(root, "score", path.name).record()
                for path in (root / "score").glob("*natural*")
            )
        )
    }

    classifier = open_classifier(context, spec.classifier)
    defence = purifiers.defend(classifier, [open_method(context, method, classifier)])
    clean = open_images(context, spec.images)
    batch, labels, indices = clean.batch(0, len(clean), "cpu")
    report = purifiers.audit(
        defence,
        batch,
        labels,
        attacks=[build(registry.load("attack", "pgd"), **spec.attack.parameters)],
        seed=spec.seed,
        indices=indices,
        progress=False,
    )
    frame = report.to_frame().set_index(["threat_model", "gradient"])["n_correct"]
    assert set(frame["white_box"].index) == set(GRADIENTS)
    for gradient in GRADIENTS:
        count = white_box_count(context, spec, method, gradient)
        assert frame["white_box", gradient] == count, gradient
    assert frame["oblivious", "exact"] == stored["pgd", "purify"]
    assert frame["clean", ""] == stored["clean", "purify"]
    undefended = report.to_frame().query("threat_model == 'undefended'")["n_correct"].tolist()
    assert undefended == [stored["clean", ""], stored["pgd", "attack"]]


def test_an_exported_set_scores_as_in_the_workflow(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = finished.folder("attack", "*natural-pgd*")
    path = tmp_path / "set.npz"
    assert main(["export", str(made), str(path)]) == 0
    assert f"{path}: 64 images" in capsys.readouterr().out
    content = read_image_file(path)
    assert np.array_equal(content.images, np.load(made / "images.npy"))
    assert content.provenance["run"] == made.name and content.provenance["ancestors"]

    context = Context(finished.runs, "cpu", 1, 64, 60.0)
    spec = RunFolder(finished.runs, "attack", made.name).record().spec_as(AttackSpec)
    assert spec.classifier is not None
    classifier = open_classifier(context, spec.classifier)
    clean = open_images(context, spec.images)
    batch, labels, indices = clean.batch(0, len(clean), "cpu")
    stored = purifiers.attack("stored", path=str(path), eps=0.15)
    adversarial = stored(classifier, batch, labels, indices=indices)
    correct = int((classifier(adversarial).argmax(1) == labels).sum())
    (score_run,) = [
        run.summary
        for run in (
            RunFolder(finished.runs, "score", folder.name).record()
            for folder in (finished.runs / "score").iterdir()
        )
        if run.spec_as(ScoreSpec).images.run == made.name
    ]
    assert correct == score_run["n_correct"]
