"""The audit of a defence from Python gives the counts of the workflow's runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import purifiers
from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import build
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
