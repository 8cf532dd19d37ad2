"""A set that somebody else made, in a table: planned, run by the stages, identified by content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from purifiers.core.artifacts import sha256
from purifiers.core.errors import UserError
from purifiers.core.spec import AttackSpec, ImagesSpec, ScoreSpec, Subset
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import Plan
from purifiers.stages import attack, score
from purifiers.stages._context import Context
from purifiers.stages._finished import export_images

PGD = {"eps": 0.1, "steps": 3, "step_size": 0.05}
IMAGES = ImagesSpec(data="digits", subset=Subset(split="test", n=20, seed=0), run=None)


def paper(path: Path) -> dict[str, dict[str, object]]:
    return {
        "classifiers": {"small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1}},
        "trainings": {"natural": {"component": "natural"}},
        "methods": {"noise": {"component": "random_sign"}},
        "attacks": {"theirs": {"component": "stored", "path": str(path), "eps": "8/255"}},
    }


DEFAULTS = {"dataset": "digits", "classifier": "small", "training": "natural", "methods": []}


def attack_runs(plan: Plan) -> list[AttackSpec]:
    return [run.spec for run in plan.runs.values() if isinstance(run.spec, AttackSpec)]


def test_the_plan_holds_the_content(toy_plan: Callable[..., Plan], tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    path.write_bytes(b"one")
    columns = {
        "alone": {"attack": "theirs"},
        "whole": {
            "attack": "theirs",
            "methods": ["noise"],
            "threat_model": "white_box",
            "eot": 1,
        },
    }
    first = toy_plan(paper(path), DEFAULTS, {"row": {}}, columns)
    cells = first.documents["toy/table_1"].cells
    assert [cell.state for cell in cells] == ["planned", "planned"]
    assert all(cell.attacked and not cell.model_free for cell in cells)
    assert [spec.attack.files for spec in attack_runs(first)] == [{str(path): sha256(path)}] * 2
    assert sorted(len(spec.methods) for spec in attack_runs(first)) == [0, 1]
    path.unlink()
    with pytest.raises(UserError, match=r"attack\.theirs: path: there is no file .*theirs\.npz"):
        toy_plan(paper(path), DEFAULTS, {"row": {}}, columns)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_round_trip_through_the_stages(untrained_runs: Path, suffix: str) -> None:
    """PGD, exported and read back: equal images and equal rows of the score."""
    context = Context(untrained_runs, "cpu", 1, 8, 60.0)
    path = untrained_runs / f"set{suffix}"
    rows, images = [], []
    for name, parameters in (("pgd", PGD), ("stored", {"path": str(path), "eps": 0.1})):
        spec = AttackSpec(
            images=IMAGES,
            classifier="one",
            methods=(),
            gradient="exact",
            attack=component_spec("attack", name, parameters),
            seed=0,
        )
        folder = context.folder("attack", name)
        folder.path.mkdir(parents=True)
        outcome = attack.run(folder, spec, context)
        folder.finish(spec, outcome.files, outcome.summary, 0.0, {"git": "abc"})
        images.append(np.load(folder.path / "images.npy"))
        if name == "pgd":
            assert export_images(folder.path, path) == 20
        scored = context.folder("score", name)
        scored.path.mkdir(parents=True)
        made = ImagesSpec(data="digits", subset=IMAGES.subset, run=name, stage="attack")
        own = ScoreSpec(images=made, classifier="one", attack=spec.attack)
        rows.append((score.run(scored, own, context).summary, scored.path / "scores.parquet"))
    assert np.array_equal(*images)
    assert rows[0][0] == rows[1][0]
    assert sha256(rows[0][1]) == sha256(rows[1][1])
