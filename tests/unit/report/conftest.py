"""Synthetic score runs, cells and documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.plan.cells import Cell, Document, ScaleInfo


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
        upstream: str = "",
        **provenance: Any,
    ) -> str:
        folder = RunFolder(runs_root, "score", run_id)
        folder.path.mkdir(parents=True)
        n = len(correct)
        columns = {
            "index": list(range(n)) if indices is None else list(indices),
            "label": [1] * n,
            "prediction": [int(value) for value in correct],
            "correct": [bool(value) for value in correct],
            "linf": [0.1] * n,
            "l2": [float(place) for place in range(n)],
        }
        pd.DataFrame(columns).to_parquet(folder.path / "scores.parquet")
        spec = {"attack": None if attack is None else {"component": attack}, "upstream": upstream}
        counts = {"n_correct": sum(map(int, correct)), "n": n}
        origin = {"git": "abc", "torch": "2", "device": "cpu", "processor": "p"} | provenance
        folder.finish(spec, ["scores.parquet"], counts | (summary or {}), 1.5, origin)
        return run_id

    return write
