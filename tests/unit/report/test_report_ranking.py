"""Ranks, gains and intervals of a ranking whose outcomes are known image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from purifiers.plan.cells import Cell, Combine, Document, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.ranking import Ranked, ranking, ranks_of, resampled_accuracy
from purifiers.report.results import Results
from purifiers.report.write import write_document

N = 40
ALL = [1] * N
HALF = [1] * 20 + [0] * 20
OTHER_HALF = HALF[::-1]
NONE = [0] * N
COLUMNS = ("clean", "pgd_oblivious", "pgd", "square", "worst", "majority", "any", "wide")
OF = ("pgd_oblivious", "pgd", "square")


class Field:
    """A document that grows by a defence at a time."""

    def __init__(self, a_cell: Callable[..., Cell], score: Callable[..., str]) -> None:
        self.a_cell, self.score = a_cell, score
        self.cells: list[Cell] = []

    def add(
        self,
        row: str,
        outcomes: Sequence[Sequence[int]],
        training: str = "natural",
        dataset: str = "mnist",
        seeds: Sequence[int] = (0,),
        without: str = "",
        **changes: Any,
    ) -> None:
        """Add a defence by its outcomes under the three attacks of ``OF``."""
        correct = dict(zip(OF, outcomes, strict=True))
        common = {
            **{"block": f"{dataset}_{training}", "row": row, "row_label": row.upper()},
            **{"dataset": dataset, "used_dataset": "mnist", "training": training},
            **{"methods": () if row == "none" else (row,), "published": None, "seeds": (*seeds,)},
        } | changes
        ids: dict[str, tuple[str, ...]] = {}
        for column in (*COLUMNS, "corruption"):
            values = ALL if column in ("clean", "corruption") else correct.get(column, NONE)
            attack = None if column in ("clean", "corruption") else "pgd"
            threat = "oblivious" if "oblivious" in column or attack is None else "white_box"
            kind = {"attack": attack or "none", "threat_model": threat}
            if column == "worst":
                scores = tuple(tuple(ids[name][k] for name in OF) for k in range(len(seeds)))
                kind["combine"] = Combine("worst_image", OF)  # type: ignore[assignment]
            else:
                ids[column] = tuple(
                    self.score(f"{dataset}-{training}-{row}-{column}-s{seed}", values, attack)
                    for seed in seeds
                )
                scores = tuple((run,) for run in ids[column])
            if column != without:
                self.cells.append(
                    self.a_cell(column=column, column_label=column, scores=scores, **common, **kind)
                )


@pytest.fixture
def field(a_cell: Callable[..., Cell], score: Callable[..., str]) -> Field:
    return Field(a_cell, score)


@pytest.fixture
def ranked(
    field: Field, a_document: Callable[..., Document], smoke_scale: ScaleInfo, runs_root: Path
) -> Callable[[], dict[str, Ranked]]:
    """Rank what ``field`` holds; the defences by row and training."""

    def rank() -> dict[str, Ranked]:
        document = a_document(*field.cells, document="ranking", plot="ranking")
        results = Results(runs_root, lambda run: None)
        found = ranking(document, aggregate(document, smoke_scale, results), results)
        return {f"{entry.row}-{entry.base}": entry for entry in found}

    return rank


def test_an_image_counts_if_no_attack_breaks_it(field: Field, ranked: Any) -> None:
    field.add("none", (NONE, NONE, NONE))
    field.add("good", (ALL, ALL, ALL))
    field.add("split", (ALL, HALF, OTHER_HALF))  # 50 % under each attack, 0 % under both
    found = ranked()
    assert list(found) == ["good-natural", "none-natural", "split-natural"]
    assert found["good-natural"].audit == 100 and found["split-natural"].audit == 0
    assert [entry.rank for entry in found.values()] == [1, 2, 2]
    assert (found["good-natural"].rank_low, found["good-natural"].rank_high) == (1, 1)
    assert found["split-natural"].oblivious == 100
    assert found["split-natural"].single == 50


def test_the_gain_is_over_the_same_base(field: Field, ranked: Any) -> None:
    field.add("none", (HALF, NONE, NONE))
    field.add("none", (ALL, HALF, HALF), training="madry")
    field.add("same", (ALL, HALF, HALF), training="madry")
    field.add("same", (ALL, HALF, ALL))
    found = ranked()
    worse = found["same-madry"]
    assert (worse.gain, worse.gain_low, worse.gain_high) == (0, 0, 0)  # paired, so exactly 0
    better = found["same-natural"]
    assert better.gain == pytest.approx(50) and better.protocol_gain == pytest.approx(50)
    assert 25 < better.gain_low < 50 < better.gain_high < 75
    assert worse.protocol_gain == 0


def test_a_training_without_a_row_of_its_own_is_compared_with_natural(
    field: Field, ranked: Any
) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("soap", (ALL, ALL, ALL), training="soap")
    assert ranked()["soap-soap"].gain == pytest.approx(50)


def test_a_defence_without_its_base_or_with_a_missing_cell_is_not_ranked(
    field: Field, ranked: Any
) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("none", (HALF, HALF, HALF), training="madry", without="wide")
    field.add("good", (ALL, ALL, ALL), training="madry")
    assert list(ranked()) == ["none-natural"]


def test_draws_are_told_of_random_purifiers_only(field: Field, ranked: Any) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("random", (ALL, ALL, ALL), stochastic=True)
    found = ranked()
    assert np.isnan(found["none-natural"].majority)
    assert found["random-natural"].any_of_5 == 0


def test_a_control_that_differs_marks_its_base(field: Field, ranked: Any) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("identity", (HALF, HALF, OTHER_HALF))
    found = ranked()
    assert list(found) == ["none-natural"]  # the control is compared, not ranked
    assert "identity control differs in worst" in found["none-natural"].warnings


def test_reports_of_an_attacks_package_mark_a_row(
    field: Field, ranked: Any, score: Callable[..., str], attack_run: Callable[..., str]
) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("aid", (HALF, HALF, HALF))
    attack_run("aa", attack="autoattack", flags=["it seems to be a randomized defense"])
    score("extra", ALL, "autoattack", made_by="aa")
    (place,) = (
        k for k, cell in enumerate(field.cells) if (cell.row, cell.column) == ("aid", "worst")
    )
    worst = field.cells[place]
    field.cells[place] = replace(worst, scores=((*worst.scores[0], "extra"),))
    by_row = ranked()
    assert "reports" not in by_row["none-natural"].warnings
    expected = "autoattack reports: it seems to be a randomized defense"
    assert expected in by_row["aid-natural"].warnings


def test_data_sets_with_the_same_runs_are_ranked_once(field: Field, ranked: Any) -> None:
    field.add("none", (HALF, HALF, HALF))
    twins = [
        {"dataset": "cifar10", "block": "cifar10_natural", "scores": cell.scores}
        for cell in field.cells
    ]
    for cell, changes in zip(list(field.cells), twins, strict=True):
        field.cells.append(type(cell)(**{**cell.__dict__, **changes}))
    assert len(ranked()) == 1


def test_resamples_draw_the_same_images_for_all() -> None:
    outcomes = np.stack([[HALF, HALF], [HALF, HALF], [OTHER_HALF, OTHER_HALF]]).astype(bool)
    accuracy = resampled_accuracy(outcomes)
    np.testing.assert_array_equal(accuracy[0], accuracy[1])
    np.testing.assert_allclose(accuracy[0] + accuracy[2], 1)
    assert accuracy[0, 1:].std() == pytest.approx(np.sqrt(0.25 / N), rel=0.1)
    assert list(ranks_of(np.array([[0.3], [0.5], [0.3], [0.1]]))[:, 0]) == [2, 1, 2, 4]


def test_all_files_are_written(
    field: Field,
    a_document: Callable[..., Document],
    smoke_scale: ScaleInfo,
    runs_root: Path,
    tmp_path: Path,
) -> None:
    field.add("none", (HALF, HALF, HALF))
    field.add("good", (ALL, ALL, ALL))
    document = a_document(*field.cells, document="ranking", plot="ranking")
    out = tmp_path / "out"
    write_document(document, smoke_scale, runs_root, out, lambda run: None)
    written = {path.name for path in out.iterdir()}
    assert {"ranking.png", "attacks.png", "ranks.csv", "ranks.md", "ranks.tex"} <= written
    table = (out / "ranks.md").read_text()
    assert "| 1 \\[1–1\\] | GOOD | natural | 100.0 ±4.4 |" in table
    assert r"1 {[}1--1{]} & GOOD & natural" in (out / "ranks.tex").read_text()
