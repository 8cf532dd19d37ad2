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
from purifiers.core.spec import AttackSpec, ImagesSpec, PurifySpec, ScoreSpec
from purifiers.stages import attack, purify, score
from purifiers.stages._context import Context
from purifiers.stages._opening import open_classifier, open_images, open_method


def stage_count(module: Any, folder: RunFolder, spec: Any, context: Context) -> int:
    folder.path.mkdir(parents=True, exist_ok=True)
    outcome = module.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    return outcome.summary.get("n_correct", -1)


@pytest.mark.parametrize("gradient", ["bpda", "exact", "second_order"])
def test_the_audit_equals_the_stages(finished: Any, gradient: str) -> None:
    root: Path = finished.runs
    context = Context(root, "cpu", 1, 64, 60.0)
    oblivious = RunFolder(root, "attack", finished.folder("attack", "*natural-pgd*").name)
    spec = oblivious.record().spec_as(AttackSpec)
    purifications = [
        RunFolder(root, "purify", path.name).record().spec_as(PurifySpec)
        for path in (root / "purify").glob("*natural-pgd*")
    ]
    (method,) = [s.method for s in purifications if s.images.run == oblivious.id]

    # the chain of a white-box cell, stage by stage
    white_box = dataclasses.replace(spec, methods=(method,), gradient=gradient)
    stage_count(attack, RunFolder(root, "attack", "own"), white_box, context)
    images = dataclasses.replace(spec.images, run="own", stage="attack")
    assert spec.classifier is not None
    purification = PurifySpec(
        images=images, classifier=spec.classifier, method=method, seed=spec.seed
    )
    stage_count(purify, RunFolder(root, "purify", "own"), purification, context)
    scored = ScoreSpec(
        images=ImagesSpec(data=images.data, subset=images.subset, run="own", stage="purify"),
        classifier=spec.classifier,
        attack=spec.attack,
    )
    expected = stage_count(score, RunFolder(root, "score", "own"), scored, context)

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
    assert frame["white_box", gradient] == expected
    stored = {
        (record.attack.component if record.attack else "clean", record.images.stage): summary
        for record, summary in (
            (run.spec_as(ScoreSpec), run.summary["n_correct"])
            for run in (
                RunFolder(root, "score", path.name).record()
                for path in (root / "score").glob("*natural*")
                if path.name != "own"
            )
        )
    }
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
