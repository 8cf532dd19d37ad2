"""What a choice of the best checkpoint on random test images reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from purifiers.plan.cells import Cell, Document, ScaleInfo
from purifiers.report.results import Results
from purifiers.report.selection import selection, selections
from purifiers.report.write import write_document


def outcomes(accuracies: list[float], images: int = 400) -> np.ndarray:
    """Whether each image is correct, bool (checkpoints, images)."""
    return np.stack([np.arange(images) < share * images for share in accuracies])


def test_equal_checkpoints_gain_the_noise_of_the_subsets(a_cell: Callable[..., Cell]) -> None:
    """The highest of 13 normal values lies 1.67 standard deviations above their mean."""
    drawn = selection(a_cell(), [outcomes([0.7] * 13)], 512)
    assert np.allclose(drawn.accuracy, 70)
    assert drawn.scores.shape == (2000, 13)
    deviation = 100 * (0.7 * 0.3 / 512) ** 0.5
    assert abs(drawn.best.mean() - 70 - 1.668 * deviation) < 0.15
    assert np.allclose(drawn.chosen, 70)


def test_one_checkpoint_gains_nothing(a_cell: Callable[..., Cell]) -> None:
    drawn = selection(a_cell(), [outcomes([0.7])], 512)
    assert abs(drawn.best.mean() - 70) < 0.2


def test_a_much_better_checkpoint_is_always_chosen(a_cell: Callable[..., Cell]) -> None:
    drawn = selection(a_cell(), [outcomes([0.3, 0.9, 0.5])], 512)
    assert np.allclose(drawn.chosen, 90)
    assert abs(drawn.best.mean() - 90) < 0.2


def test_the_test_set_as_validation_set_gains_what_noise_gives(
    a_cell: Callable[..., Cell],
) -> None:
    """Equal checkpoints with independent errors: the best of them gains on its own half only."""
    correct = np.random.default_rng(0).random((12, 400)) < 0.7
    drawn = selection(a_cell(), [correct], 0)
    assert drawn.scores.shape == drawn.elsewhere.shape == (2000, 12)
    deviation = 100 * (0.7 * 0.3 / 200) ** 0.5
    assert abs(drawn.best.mean() - 70 - 1.629 * deviation) < 1.0  # highest of 12 normal values
    assert abs(drawn.chosen.mean() - 70) < 1.0
    assert np.allclose((drawn.scores + drawn.elsewhere) / 2, drawn.accuracy)


def test_seeds_are_trainings_of_their_own(a_cell: Callable[..., Cell]) -> None:
    drawn = selection(a_cell(), [outcomes([0.2, 0.4]), outcomes([0.6, 0.8])], 512)
    assert np.allclose(drawn.accuracy, [40, 60])
    assert abs(drawn.best[:2000].mean() - 40) < 0.2 and abs(drawn.best[2000:].mean() - 80) < 0.2


def test_files_and_picture(
    a_cell: Callable[..., Cell],
    a_document: Callable[..., Document],
    score: Callable[..., str],
    smoke_scale: ScaleInfo,
    runs_root: Path,
    tmp_path: Path,
) -> None:
    cells = []
    for row, share in (("start", 0.25), ("end", 0.5)):
        for column in ("standard", "pgd"):
            correct = [int(value) for value in outcomes([share], 40)[0]]
            run = score(f"{row}-{column}", correct, None if column == "standard" else "pgd")
            attack = "none" if column == "standard" else "pgd"
            cells.append(
                a_cell(
                    row=row,
                    row_label=row,
                    column=column,
                    scores=((run,),),
                    seeds=(0,),
                    attack=attack,
                )
            )
    document = a_document(*cells, document="audit_selection", plot="selection", choose_on=512)
    drawn = selections(document, Results(runs_root, lambda run: None))
    assert [part.column for part in drawn] == ["standard", "pgd"]
    assert drawn[0].accuracy.tolist() == [25, 50]
    write_document(document, smoke_scale, runs_root, tmp_path, lambda run: None)
    assert (tmp_path / "audit_selection.png").stat().st_size > 5000
    frame = pd.read_csv(tmp_path / "selection.csv")
    assert frame[["lowest", "highest", "mean", "end"]].iloc[0].tolist() == [25, 50, 37.5, 50]
    text = (tmp_path / "selection.md").read_text()
    assert "25.0 to 50.0 | 37.5 | 50.0 |" in text


def test_an_unfinished_column_is_left_out(
    a_cell: Callable[..., Cell], a_document: Callable[..., Document], runs_root: Path
) -> None:
    document = a_document(a_cell(scores=(("missing",),), seeds=(0,)), plot="selection")
    assert selections(document, Results(runs_root, lambda run: None)) == []
