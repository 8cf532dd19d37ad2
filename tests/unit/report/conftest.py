"""Synthetic score runs, cells and documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import (
    AttackSpec,
    ComponentSpec,
    ImagesSpec,
    MethodSpec,
    PurifySpec,
    ScoreSpec,
    Subset,
)
from purifiers.plan.cells import Cell, Document, ScaleInfo

IMAGES = ImagesSpec(data="mnist-1", subset=Subset(split="test", n=4, seed=0), run=None)
"""The clean images of every synthetic run."""

PGD = {
    "eps": 8 / 255,
    "step_size": 2 / 255,
    "steps": 20,
    "random_start": True,
    "restarts": 1,
    "stop": "never",
}


def _images(made_by: str, stage: str) -> ImagesSpec:
    """What a run made of the clean images; the clean images themselves for ``""``."""
    return dataclasses.replace(IMAGES, run=made_by, stage=stage) if made_by else IMAGES


def _recipe(attack: str, parameters: Mapping[str, Any]) -> ComponentSpec:
    return ComponentSpec(component=attack, version=1, parameters=dict(parameters))


def _cell(**changes: Any) -> Cell:
    fields: dict[str, Any] = {
        **{"paper": "aid", "table": "3", "document": "table_3"},
        **{"block": "mnist", "row": "madry", "column": "pgd"},
        **{"block_label": "MNIST", "row_label": "Madry", "column_label": "PGD"},
        **{"dataset": "mnist", "used_dataset": "mnist", "classifier": "small_cnn"},
        **{"training": "madry", "methods": (), "attack": "pgd", "threat_model": "oblivious"},
        **{"gradient": "exact", "metric": "accuracy", "unit": "percent", "published": 60.0},
        **{"flags": (), "state": "planned", "reason": "", "scores": (), "seeds": ()},
    }
    return Cell(**(fields | changes))


def _document(*cells: Cell, **changes: Any) -> Document:
    fields: dict[str, Any] = {
        **{"paper": "aid", "document": cells[0].document if cells else ""},
        **{"title": "Accuracy"},
        **{"where": "Table 3, section 4.2", "notes": (), "status": "measured", "cells": cells},
    }
    return Document(**(fields | changes))


@pytest.fixture
def a_cell() -> Callable[..., Cell]:
    """Make a cell that is planned, with changes."""
    return _cell


@pytest.fixture
def a_document() -> Callable[..., Document]:
    """Make a document of cells, with changes."""
    return _document


@pytest.fixture
def paper_scale() -> ScaleInfo:
    return ScaleInfo("paper", "the papers' own settings", "", False)


@pytest.fixture
def smoke_scale() -> ScaleInfo:
    return ScaleInfo("smoke", "minutes", "Digits stand in for every data set.", True)


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def score(runs_root: Path) -> Callable[..., str]:
    """Write a finished score run and return its id."""

    def write(
        run_id: str,
        correct: Sequence[int],
        attack: str | None = "pgd",
        indices: Sequence[int] | None = None,
        summary: dict[str, Any] | None = None,
        made_by: str = "",
        stage: str = "attack",
        parameters: Mapping[str, Any] = PGD,
        classifier: str = "cnn",
        labels: Sequence[int] | None = None,
        **provenance: Any,
    ) -> str:
        folder = RunFolder(runs_root, "score", run_id)
        folder.path.mkdir(parents=True)
        n = len(correct)
        columns = {
            "index": list(range(n)) if indices is None else list(indices),
            "label": [1] * n if labels is None else list(labels),
            "prediction": [int(value) for value in correct],
            "correct": [bool(value) for value in correct],
            "linf": [0.1] * n,
            "l2": [9.0] * n,
            "attack_linf": [0.1] * n,
            "attack_l2": [float(place) for place in range(n)],
        }
        pd.DataFrame(columns).to_parquet(folder.path / "scores.parquet")
        spec = ScoreSpec(
            images=_images(made_by, stage),
            classifier=classifier,
            attack=None if attack is None else _recipe(attack, parameters),
        )
        counts = {"n_correct": sum(map(int, correct)), "n": n}
        origin = {"git": "abc", "torch": "2", "device": "cpu", "processor": "p"} | provenance
        folder.finish(spec, ["scores.parquet"], counts | (summary or {}), 1.5, origin)
        return run_id

    return write


@pytest.fixture
def attack_run(runs_root: Path) -> Callable[..., str]:
    """Write the record of a finished attack and return its id."""

    def write(
        run_id: str,
        probe: Mapping[str, Any] | None = None,
        attack: str = "pgd",
        parameters: Mapping[str, Any] = PGD,
        classifier: str = "cnn",
        methods: Sequence[MethodSpec] = (),
        gradient: str = "exact",
        flags: Sequence[str] = (),
        **more: Any,
    ) -> str:
        spec = AttackSpec(
            images=IMAGES,
            classifier=classifier,
            methods=tuple(methods),
            gradient=gradient,
            attack=_recipe(attack, parameters),
            seed=0,
            **more,
        )
        summary: dict[str, Any] = {"n": 4, "flags": list(flags)}
        if probe is not None:
            summary["probe"] = dict(probe)
        RunFolder(runs_root, "attack", run_id).finish(spec, [], summary, 1.0, {})
        return run_id

    return write


@pytest.fixture
def purify_run(runs_root: Path) -> Callable[..., str]:
    """Write the record of a finished purification and return its id."""

    def write(run_id: str, made_by: str, method: MethodSpec, stage: str = "attack") -> str:
        images = _images(made_by, stage)
        spec = PurifySpec(images=images, classifier="cnn", method=method, seed=0)
        RunFolder(runs_root, "purify", run_id).finish(spec, [], {"n": 4}, 1.0, {})
        return run_id

    return write
